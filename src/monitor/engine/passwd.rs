//! Home folders by uid, from the text of /etc/passwd. Not by libc: its name service switch loads
//! libraries that the container's own files name, into a process that is still privileged.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;

/// Most bytes of /etc/passwd that are looked at.
const MAX_PASSWD: u64 = 1 << 20;

/// The home folder of `uid` according to this process's /etc/passwd; `/` where it has none.
pub(super) fn home(uid: u32) -> String {
    let mut text = Vec::new();
    // Opening a fifo would wait, and reading a device may have effects.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open("/etc/passwd")
        .ok()
        .filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
    if let Some(file) = file
        && file.take(MAX_PASSWD).read_to_end(&mut text).is_ok()
        && let Some(home) = find(&String::from_utf8_lossy(&text), uid)
    {
        return home.to_owned();
    }
    "/".to_owned()
}

fn find(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then_some(())?;
        fields.nth(2).filter(|home| home.starts_with('/') && !home.contains('\0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_lines_are_passed_over() {
        let text = "\n#c\nroot:x:0:0:root:/root:/bin/sh\nshort:x:7\nrel:x:8:8::home:/x\na:x:9:9:A:/home/a:/bin/sh\n";
        let want = [(0, Some("/root")), (7, None), (8, None), (9, Some("/home/a")), (10, None)];
        for (uid, home) in want {
            assert_eq!(find(text, uid), home, "{uid}");
        }
    }
}
