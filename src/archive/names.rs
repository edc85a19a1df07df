//! What the name of an archive entry means.

use crate::tree::TreePath;

/// Prefix of an entry that says its name is deleted.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Prefix of AUFS' own names.
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// Name of an entry that says that its directory hides all that lies below it.
pub const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// The longest name in a directory, in bytes.
const NAME_MAX: usize = 255;

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The root of the layer.
    Root,
    /// AUFS' own files, which no layer holds.
    Metadata,
    /// All that lies below this directory is hidden.
    Opaque(TreePath),
    /// This path is deleted.
    Whiteout(TreePath),
    /// This path is made.
    Entry(TreePath),
}

/// Takes a name apart: a leading `/`, doubled slashes and `.` components mean nothing.
///
/// # Errors
/// Why no path inside a layer can be meant.
pub fn clean(name: &[u8]) -> Result<TreePath, String> {
    if name.is_empty() {
        return Err("the name is empty".to_string());
    }
    let mut path = TreePath(Vec::with_capacity(name.len()));
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("the name holds `..`".to_string()),
            _ if part.contains(&0) => return Err("the name holds NUL".to_string()),
            // A whiteout is longer by its prefix than the name that it deletes, and is never made under its own name.
            _ if part.strip_prefix(WHITEOUT_PREFIX).unwrap_or(part).len() > NAME_MAX => {
                return Err(format!(
                    "a part of the name is longer than {NAME_MAX} bytes"
                ));
            }
            _ => {
                if !path.is_root() {
                    path.0.push(b'/');
                }
                path.0.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

/// What an entry of this name is about, in the AUFS convention of layer archives.
///
/// # Errors
/// The name is reserved and stands for nothing that can be carried out: a whiteout of no name (`.wh.`), of `.` or `..`, or a path
/// through a directory whose name begins with `.wh.`.
pub fn meaning(name: &[u8]) -> Result<Meaning, String> {
    let path = clean(name)?;
    let Some(dir) = path.parent() else {
        return Ok(Meaning::Root);
    };
    let base = path.base();
    // AUFS keeps its own files at the top of a branch; deeper, the prefix can only be a whiteout of an impossible name.
    if base != OPAQUE_MARKER && (path.0.starts_with(META_PREFIX) || base.starts_with(META_PREFIX)) {
        return Ok(Meaning::Metadata);
    }
    if dir
        .0
        .split(|b| *b == b'/')
        .any(|part| part.starts_with(WHITEOUT_PREFIX))
    {
        return Err("it lies below a name that is reserved for whiteouts".to_string());
    }
    if base == OPAQUE_MARKER {
        return Ok(Meaning::Opaque(dir));
    }
    match base.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Meaning::Entry(path)),
        Some(b"" | b"." | b"..") => {
            Err("a whiteout that names no entry of its directory".to_string())
        }
        Some(hidden) => Ok(Meaning::Whiteout(dir.join(hidden))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn path(text: &str) -> TreePath {
        TreePath(text.into())
    }

    #[rstest]
    #[case::plain("a/b", Ok(Meaning::Entry(path("a/b"))))]
    #[case::absolute("/a", Ok(Meaning::Entry(path("a"))))]
    #[case::slashes("//a///b//", Ok(Meaning::Entry(path("a/b"))))]
    #[case::dots("./a/./b", Ok(Meaning::Entry(path("a/b"))))]
    #[case::three_dots("...", Ok(Meaning::Entry(path("..."))))]
    #[case::root("./", Ok(Meaning::Root))]
    #[case::slash("/", Ok(Meaning::Root))]
    #[case::whiteout("d/.wh.f", Ok(Meaning::Whiteout(path("d/f"))))]
    #[case::whiteout_slash("d/.wh.f/", Ok(Meaning::Whiteout(path("d/f"))))]
    #[case::whiteout_of_wh_name("d/.wh.wh", Ok(Meaning::Whiteout(path("d/wh"))))]
    #[case::opaque("d/.wh..wh..opq", Ok(Meaning::Opaque(path("d"))))]
    #[case::opaque_root(".wh..wh..opq", Ok(Meaning::Opaque(path(""))))]
    #[case::plnk(".wh..wh.plnk/1.2", Ok(Meaning::Metadata))]
    #[case::aufs("./.wh..wh.aufs", Ok(Meaning::Metadata))]
    #[case::deep_meta("d/.wh..wh.orph", Ok(Meaning::Metadata))]
    #[case::up("../a", Err(()))]
    #[case::up_inside("a/../b", Err(()))]
    #[case::up_before_whiteout("x/../.wh.etc", Err(()))]
    #[case::nothing("", Err(()))]
    #[case::nul("a\0b", Err(()))]
    #[case::wh_nothing(".wh.", Err(()))]
    #[case::wh_dot("d/.wh..", Err(()))]
    #[case::wh_dots("d/.wh...", Err(()))]
    #[case::wh_dots_slash(".wh.../", Err(()))]
    #[case::below_whiteout(".wh.d/f", Err(()))]
    fn meanings(#[case] name: &str, #[case] expected: Result<Meaning, ()>) {
        assert_eq!(meaning(name.as_bytes()).map_err(|_| ()), expected);
    }

    #[test]
    fn parts_have_a_limit() {
        assert!(clean(&[b'x'; 255]).is_ok());
        assert!(clean(&[b'x'; 256]).is_err());
    }
}
