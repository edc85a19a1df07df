//! Names of errnos, as errno(3) and scenario files write them.

use rustix::io::Errno;

/// The name of an errno, such as `ENOENT`; `errno 4242` for one that has none.
pub fn name(errno: Errno) -> String {
    let code = errno.raw_os_error();
    match nix::errno::Errno::from_raw(code) {
        nix::errno::Errno::UnknownErrno => format!("errno {code}"),
        known => format!("{known:?}"),
    }
}

/// The errno of that name.
pub fn from_name(name: &str) -> Option<Errno> {
    // Names that are second names on Linux.
    let name = match name {
        "ENOTSUP" => "EOPNOTSUPP",
        "EWOULDBLOCK" => "EAGAIN",
        "EDEADLOCK" => "EDEADLK",
        other => other,
    };
    (1..=133)
        .map(Errno::from_raw_os_error)
        .find(|e| self::name(*e) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_fit() {
        assert_eq!(name(Errno::XDEV), "EXDEV");
        assert_eq!(from_name("ENOTSUP"), Some(Errno::OPNOTSUPP));
        assert_eq!(from_name("ENONSENSE"), None);
        assert_eq!(name(Errno::from_raw_os_error(4000)), "errno 4000");
        for code in (1..=133).filter(|c| ![41, 58].contains(c)) {
            let errno = Errno::from_raw_os_error(code);
            assert_eq!(from_name(&name(errno)), Some(errno));
        }
    }
}
