//! What is said on the error stream when exec or attach ends.
//!
//! From v4 on it is a Kubernetes `Status` in JSON; before, it is a message for people, and silence is success.

use serde::Serialize;

use super::Ending;

/// Highest exit code that clients can read.
const MAX_CODE: i32 = 255;

/// The words for `ending`; nothing if there is nothing to say.
pub(super) fn words(ending: &Ending, json: bool) -> Option<Vec<u8>> {
    let status = status(ending)?;
    if json {
        // Strings and numbers only: it cannot fail.
        return serde_json::to_vec(&status).ok();
    }
    status.message.map(String::into_bytes)
}

fn status(ending: &Ending) -> Option<Status> {
    match ending {
        Ending::Exited(0) | Ending::Detached => Some(Status { status: "Success", ..Status::default() }),
        Ending::Exited(code) => {
            let code = (*code).clamp(1, MAX_CODE);
            let cause = Cause { reason: "ExitCode", message: code.to_string() };
            Some(Status {
                status: "Failure",
                message: Some(format!("command terminated with non-zero exit code: {code}")),
                reason: Some("NonZeroExitCode"),
                details: Some(Details { causes: [cause] }),
                ..Status::default()
            })
        }
        Ending::Failed(reason) => Some(Status {
            status: "Failure",
            message: Some(format!("Internal error occurred: {reason}")),
            reason: Some("InternalError"),
            code: Some(500),
            ..Status::default()
        }),
        Ending::ClientGone => None,
    }
}

/// `meta/v1.Status`, as far as clients read it.
#[derive(Default, Serialize)]
struct Status {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Default, Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

/// A cause's type is named `reason` in JSON.
#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ending: &Ending, json: bool) -> Option<String> {
        words(ending, json).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn json_as_clients_read_it() {
        let success = r#"{"metadata":{},"status":"Success"}"#;
        assert_eq!(said(&Ending::Exited(0), true).unwrap(), success);
        assert_eq!(said(&Ending::Detached, true).unwrap(), success);
        let failed: serde_json::Value = serde_json::from_str(&said(&Ending::Exited(137), true).unwrap()).unwrap();
        let expected = serde_json::json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: 137",
            "details": { "causes": [{ "reason": "ExitCode", "message": "137" }] },
        });
        assert_eq!(failed, expected);
        let failed = said(&Ending::Failed("no \"such\" program".into()), true).unwrap();
        let failed: serde_json::Value = serde_json::from_str(&failed).unwrap();
        assert_eq!((failed["reason"].as_str(), failed["code"].as_u64()), (Some("InternalError"), Some(500)));
        assert_eq!(failed["message"], "Internal error occurred: no \"such\" program");
        assert_eq!(said(&Ending::ClientGone, true), None);
    }

    #[test]
    fn older_protocols_say_nothing_on_success() {
        assert_eq!(said(&Ending::Exited(0), false), None);
        assert_eq!(said(&Ending::Exited(3), false).unwrap(), "command terminated with non-zero exit code: 3");
        assert_eq!(said(&Ending::Failed("x".into()), false).unwrap(), "Internal error occurred: x");
    }

    #[test]
    fn codes_that_no_client_can_read_are_bent() {
        for (code, told) in [(256, "255"), (-1, "1"), (255, "255")] {
            assert!(said(&Ending::Exited(code), true).unwrap().contains(&format!(r#""message":"{told}""#)), "{code}");
        }
    }
}
