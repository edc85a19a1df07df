//! Uid and gid maps of a user namespace, as moby's `IDMap`.

use crate::tree::Owner;

/// One run of ids: `container_id..container_id + size` inside the namespace is `host_id..host_id + size` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdMap {
    /// First id inside.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// How many ids.
    pub size: u32,
}

/// An id that no run covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {id} is not mapped")]
pub struct Unmapped {
    /// `uid` or `gid`.
    pub kind: &'static str,
    /// The id.
    pub id: u32,
}

/// The maps of both kinds. An empty list leaves its kind as it is. Where runs overlap, the first one that covers an id counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Of uids.
    pub uids: Vec<IdMap>,
    /// Of gids.
    pub gids: Vec<IdMap>,
}

impl IdMaps {
    /// Maps that change nothing.
    pub fn identity() -> Self {
        Self::default()
    }

    /// Whether no id is changed for want of any run.
    pub fn is_identity(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// From an owner inside (as in an archive) to the one on disk.
    ///
    /// # Errors
    /// No run covers one of the two ids.
    pub fn to_host(&self, owner: Owner) -> Result<Owner, Unmapped> {
        let one =
            |map: &[IdMap], kind, id| translate(map, kind, id, |m| (m.container_id, m.host_id));
        Ok(Owner {
            uid: one(&self.uids, "uid", owner.uid)?,
            gid: one(&self.gids, "gid", owner.gid)?,
        })
    }

    /// From an owner on disk to the one inside.
    ///
    /// # Errors
    /// No run covers one of the two ids.
    pub fn to_container(&self, owner: Owner) -> Result<Owner, Unmapped> {
        let one =
            |map: &[IdMap], kind, id| translate(map, kind, id, |m| (m.host_id, m.container_id));
        Ok(Owner {
            uid: one(&self.uids, "uid", owner.uid)?,
            gid: one(&self.gids, "gid", owner.gid)?,
        })
    }

    /// What 0:0 inside is on disk: the owner of layer roots and of directories made for want of an entry.
    ///
    /// # Errors
    /// No run covers 0; such maps are refused when a driver starts.
    pub fn remapped_root(&self) -> Result<Owner, Unmapped> {
        self.to_host(Owner::default())
    }
}

fn translate(
    map: &[IdMap],
    kind: &'static str,
    id: u32,
    sides: impl Fn(&IdMap) -> (u32, u32),
) -> Result<u32, Unmapped> {
    if map.is_empty() {
        return Ok(id);
    }
    map.iter()
        .find_map(|m| {
            let (from, to) = sides(m);
            id.checked_sub(from)
                .filter(|past| *past < m.size)
                .and_then(|past| to.checked_add(past))
        })
        .ok_or(Unmapped { kind, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn maps() -> IdMaps {
        let run = |container_id, host_id, size| IdMap {
            container_id,
            host_id,
            size,
        };
        IdMaps {
            uids: vec![run(0, 100_000, 1000), run(1000, 5, 1)],
            gids: vec![run(0, 200_000, 10)],
        }
    }

    #[rstest]
    #[case::root((0, 0), Ok((100_000, 200_000)))]
    #[case::last_of_a_run((999, 9), Ok((100_999, 200_009)))]
    #[case::second_run((1000, 1), Ok((5, 200_001)))]
    #[case::uid_past_the_end((1001, 0), Err(Unmapped { kind: "uid", id: 1001 }))]
    #[case::gid_past_the_end((0, 10), Err(Unmapped { kind: "gid", id: 10 }))]
    #[case::no_id((u32::MAX, 0), Err(Unmapped { kind: "uid", id: u32::MAX }))]
    fn shifts_both_ways(#[case] inside: (u32, u32), #[case] outside: Result<(u32, u32), Unmapped>) {
        let owner = |(uid, gid)| Owner { uid, gid };
        let found = maps().to_host(owner(inside));
        assert_eq!(found, outside.map(owner));
        if let Ok(found) = found {
            assert_eq!(maps().to_container(found), Ok(owner(inside)));
        }
    }

    #[test]
    fn empty_maps_change_nothing() {
        let owner = Owner {
            uid: u32::MAX,
            gid: 7,
        };
        assert_eq!(IdMaps::identity().to_host(owner), Ok(owner));
        assert_eq!(IdMaps::identity().to_container(owner), Ok(owner));
    }

    #[test]
    fn a_run_never_wraps_around() {
        let maps = IdMaps {
            uids: vec![IdMap {
                container_id: 0,
                host_id: u32::MAX,
                size: 2,
            }],
            gids: vec![],
        };
        assert_eq!(
            maps.to_host(Owner { uid: 1, gid: 0 }),
            Err(Unmapped { kind: "uid", id: 1 })
        );
    }
}
