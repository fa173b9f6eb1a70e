//! Images.

use crate::image::Image;
use crate::proto;

/// An image, in a list or by itself.
pub fn image(from: &Image) -> proto::Image {
    let (uid, username) = user(&from.config.user);
    proto::Image {
        id: from.id.to_string(),
        repo_tags: from.tags.clone(),
        repo_digests: from.digests.clone(),
        size: from.size,
        uid: uid.map(|value| proto::Int64Value { value }),
        username,
        spec: None,
        pinned: from.pinned,
    }
}

/// USER is `user`, `user:group`, or numbers in either's place. A number beyond every uid is told as
/// a name: the kubelet then refuses it under runAsNonRoot rather than taking it for another uid.
fn user(text: &str) -> (Option<i64>, String) {
    let user = text.split(':').next().unwrap_or_default();
    let digits = !user.is_empty() && user.bytes().all(|b| b.is_ascii_digit());
    match user.parse::<u32>() {
        Ok(uid) if digits && uid != u32::MAX => (Some(uid.into()), String::new()),
        _ => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_and_user_name_are_told_apart() {
        for (text, uid, name) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1002:1003", Some(1002), ""),
            ("nobody", None, "nobody"),
            ("www-data:www-data", None, "www-data"),
            ("1000a", None, "1000a"),
            ("-1", None, "-1"),
            ("+1", None, "+1"),
            ("4294967295", None, "4294967295"),
            ("18446744073709551616", None, "18446744073709551616"),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text:?}");
        }
    }
}
