//! Image names and credentials.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::check::{annotations, label_text, length, no_control};
use super::{At, DecodeError, required};
use crate::image::Auth;
use crate::proto;

/// Longest reference taken, bytes; the distribution spec's names are shorter.
const MAX_REFERENCE: usize = 1024;
/// Longest secret taken, bytes. Cloud registries hand out tokens of several KiB.
const MAX_SECRET: usize = 64 << 10;

/// An image as a request names it.
#[derive(Debug)]
pub struct Spec {
    /// Reference or id.
    pub name: String,
    /// As the user wrote it.
    pub user_specified: String,
    /// Opaque.
    pub annotations: BTreeMap<String, String>,
}

/// An image spec whose name is not empty. The runtime handler must be known, and is otherwise of no
/// consequence: all handlers share one store. `image_ref` is for answers, it selects nothing.
pub fn spec(at: &At<'_>, from: proto::ImageSpec, handlers: &[&str]) -> Result<Spec, DecodeError> {
    let proto::ImageSpec { image, annotations: map, user_specified_image, runtime_handler, image_ref: _ } = from;
    let handler_at = at.field("runtime_handler");
    if !runtime_handler.is_empty() && !handlers.contains(&runtime_handler.as_str()) {
        return Err(handler_at.bad(runtime_handler, "is no handler of this node"));
    }
    let name_at = at.field("image");
    length(&name_at, &image, 1, MAX_REFERENCE)?;
    no_control(&name_at, &image)?;
    Ok(Spec {
        name: image,
        user_specified: label_text(&at.field("user_specified_image"), user_specified_image)?,
        annotations: annotations(&at.field("annotations"), map)?,
    })
}

/// The name in a request's `image` field.
pub fn image_name(from: Option<proto::ImageSpec>, handlers: &[&str]) -> Result<String, DecodeError> {
    let at = At::root("image");
    Ok(spec(&at, required(&at, from)?, handlers)?.name)
}

/// Credentials; all empty is none. No value ever gets into an error.
pub fn auth(from: Option<proto::AuthConfig>) -> Result<Option<Auth>, DecodeError> {
    let Some(from) = from else { return Ok(None) };
    let proto::AuthConfig { username, password, auth, server_address, identity_token, registry_token } = from;
    let at = At::root("auth");
    for (name, secret) in [
        ("username", &username),
        ("password", &password),
        ("auth", &auth),
        ("identity_token", &identity_token),
        ("registry_token", &registry_token),
    ] {
        if secret.len() > MAX_SECRET || secret.contains(['\n', '\r', '\0']) {
            return Err(at.field(name).bad("…", format!("want one line of at most {MAX_SECRET} bytes")));
        }
    }
    let (username, password) = match (username.is_empty() && password.is_empty(), auth.as_str()) {
        (_, "") | (false, _) => (username, password),
        (true, packed) => unpack(packed).ok_or_else(|| at.field("auth").bad("…", "want base64 of USER:PASSWORD"))?,
    };
    let empty = [&username, &password, &identity_token, &registry_token].iter().all(|part| part.is_empty());
    if empty {
        return Ok(None);
    }
    let server_address = label_text(&at.field("server_address"), server_address)?;
    Ok(Some(Auth { username, password, identity_token, registry_token, server_address }))
}

/// `USER:PASSWORD` in base64, as Docker's config files have it; some writers pad it with NULs.
fn unpack(packed: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(packed.trim()).ok()?).ok()?;
    let (username, password) = text.trim_end_matches('\0').split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name =
            |image: &str| image_name(Some(proto::ImageSpec { image: image.into(), ..Default::default() }), &["youki"]);
        assert_eq!(name("busybox").as_deref(), Ok("busybox"));
        assert_eq!(image_name(None, &[]).unwrap_err().field, "image");
        assert_eq!(name("").unwrap_err().field, "image.image");
        assert_eq!(name("a\nb").unwrap_err().field, "image.image");
        assert!(name(&"a".repeat(1025)).is_err());
        let of = |handler: &str| proto::ImageSpec {
            image: "a".into(),
            runtime_handler: handler.into(),
            ..Default::default()
        };
        assert!(image_name(Some(of("youki")), &["youki"]).is_ok());
        assert_eq!(image_name(Some(of("kata")), &["youki"]).unwrap_err().field, "image.runtime_handler");
    }

    fn config(change: impl FnOnce(&mut proto::AuthConfig)) -> Option<proto::AuthConfig> {
        let mut from = proto::AuthConfig::default();
        change(&mut from);
        Some(from)
    }

    #[test]
    fn credentials() {
        assert!(auth(None).unwrap().is_none());
        assert!(auth(config(|_| {})).unwrap().is_none());
        let packed = STANDARD.encode("ann:pass:word\0");
        let got = auth(config(|a| a.auth = packed)).unwrap().unwrap();
        assert_eq!((got.username.as_str(), got.password.as_str()), ("ann", "pass:word"));
        let got = auth(config(|a| (a.username, a.auth) = ("bob".into(), "rubbish".into()))).unwrap().unwrap();
        assert_eq!(got.username, "bob");
        assert!(auth(config(|a| a.registry_token = "t".into())).unwrap().is_some());
        for bad in ["!!", &STANDARD.encode("nocolon"), &STANDARD.encode([0xff, b':'])] {
            assert_eq!(auth(config(|a| a.auth = bad.into())).map(drop).unwrap_err().field, "auth.auth", "{bad}");
        }
    }

    #[test]
    fn secrets_stay_out_of_errors() {
        for from in [config(|a| a.auth = "hunter2".into()), config(|a| a.password = "hunter2\n".into())] {
            let error = auth(from).map(|_| ()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
