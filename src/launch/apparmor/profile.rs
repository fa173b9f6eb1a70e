//! The text of the built-in AppArmor profile.
//!
//! It takes from a container what it could do to the machine even as root with the default capabilities: mounting, and
//! writing what is the kernel's in /proc and /sys. It relies on no file of the machine's policy but the version of the
//! language, where there is one.

/// Where the machine's own policy is.
pub(super) const POLICY: &str = "/etc/apparmor.d";
/// Version of the language that the profile is written in. With a later one, what is not mentioned would be forbidden.
pub(super) const ABI: &str = "abi/3.0";

/// Profiles that distributions give to programs which may have to signal containers.
const RUNTIMES: [&str; 4] = ["runc", "crun", "podwright", "podwright-monitor"];

/// The profile by the name of `name`; `own` is the one that the daemon itself runs under; `abi`: the machine has [`ABI`].
pub(super) fn text(name: &str, own: Option<&str>, abi: bool) -> String {
    let abi = if abi { format!("abi <{ABI}>,\n") } else { String::new() };
    let mut peers: Vec<&str> = RUNTIMES.to_vec();
    peers.extend(own.filter(|own| !RUNTIMES.contains(own)));
    let signals: String = peers.iter().map(|peer| format!("  signal (receive) peer=\"{peer}\",\n")).collect();
    format!(
        r#"{abi}profile "{name}" flags=(attach_disconnected,mediate_deleted) {{
  capability,
  file,
  network,
  umount,
  deny mount,

  # Signals and traces stay among containers; those outside who may do anything, and runtimes, may send signals.
  signal (receive) peer=unconfined,
{signals}  signal (send,receive) peer="{name}",
  ptrace (trace,read,tracedby,readby) peer="{name}",
  ptrace (readby),

  # In /proc only files of processes can be written: nothing in its top folder, nor in another folder of the kernel's
  # than sys.
  deny /proc/* w,
  deny /proc/[^/1-9s]*/** w,
  deny /proc/s[^/y]*/** w,
  deny /proc/sy[^/s]*/** w,
  deny /proc/sys[^/]*/** w,
  # Of the kernel's settings only those of System V shared memory and semaphores.
  deny /proc/sys/[^/k]*{{,/**}} w,
  deny /proc/sys/k[^/e]*{{,/**}} w,
  deny /proc/sys/ke[^/r]*{{,/**}} w,
  deny /proc/sys/key*{{,/**}} w,
  deny /proc/sys/kernel/[^/s]*{{,/**}} w,
  deny /proc/sys/kernel/s[^/he]*{{,/**}} w,
  deny /proc/sys/kernel/sh[^/m]*{{,/**}} w,
  deny /proc/sys/kernel/se[^/m]*{{,/**}} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # In /sys nothing but cgroups.
  deny /sys/[^/f]*/** wklx,
  deny /sys/f[^/s]*/** wklx,
  deny /sys/fs/[^/c]*/** wklx,
  deny /sys/fs/c[^/g]*/** wklx,
  deny /sys/fs/cg[^/r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_own_profile_may_send_signals() {
        let text = text("podwright-default", Some("my daemon"), true);
        assert!(text.starts_with("abi <abi/3.0>,\nprofile \"podwright-default\" "), "{text}");
        for peer in ["unconfined", "\"runc\"", "\"crun\"", "\"podwright-monitor\"", "\"my daemon\""] {
            assert!(text.contains(&format!("  signal (receive) peer={peer},\n")), "{peer}");
        }
        assert!(text.contains("  deny mount,\n") && !text.contains("{{") && !text.contains("{signals}"));
        assert!(super::text("x", None, false).starts_with("profile \"x\""));
    }
}
