//! Parts of a run for several machines.
//!
//! Several cells are split by whole cells, so that each is made on one machine only; a single cell is split by its scenarios. What is
//! split is put into the order of a hash of its names, which neither machine nor version changes, and dealt out in turn: parts differ by one
//! at most, and part I of N holds the same everywhere. Names that stand together, as all cells of one filesystem do, are spread.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::run::Cell;

/// The I-th of N parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err("expected I/N, two numbers with 1 <= I <= N".to_string()),
        }
    }
}

/// Which part of what a report is, as it tells it itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which, from 1.
    pub index: usize,
    /// How many there are.
    pub of: usize,
    /// How many cells all parts have together.
    pub cells: usize,
    /// A hash of the names of all cells and all that runs in them: parts of one run have it in common.
    pub plan: String,
}

impl Shard {
    /// Takes the part out of a run.
    ///
    /// # Errors
    /// There are fewer cells, or of a single cell fewer scenarios, than parts.
    pub fn take(self, cells: Vec<Cell>) -> Result<(Vec<Cell>, Part), String> {
        let part = Part {
            index: self.index,
            of: self.of,
            cells: cells.len(),
            plan: plan(&cells),
        };
        let few = |n: usize, what: &str| {
            Err(format!(
                "part {} of {}: there are only {n} {what} to split",
                self.index, self.of
            ))
        };
        let mut cells = cells;
        if let [only] = &mut cells[..] {
            if only.cases.len() < self.of {
                return few(only.cases.len(), "scenarios");
            }
            let mine = self.deal(&only.cases, |c| c.label());
            only.cases = mine.into_iter().map(|i| only.cases[i].clone()).collect();
            return Ok((cells, part));
        }
        if cells.len() < self.of {
            return few(cells.len(), "cells");
        }
        let mine = self.deal(&cells, Cell::name);
        let cells = mine.into_iter().map(|i| cells[i].clone()).collect();
        Ok((cells, part))
    }

    /// Which of the things are in this part, in their own order.
    fn deal<T>(self, things: &[T], name: impl Fn(&T) -> String) -> Vec<usize> {
        let mut order: Vec<(u64, String, usize)> = things
            .iter()
            .enumerate()
            .map(|(i, t)| (fnv1a(name(t).as_bytes()), name(t), i))
            .collect();
        order.sort();
        let mine = order.into_iter().skip(self.index - 1).step_by(self.of);
        let mut mine: Vec<usize> = mine.map(|(_, _, i)| i).collect();
        mine.sort_unstable();
        mine
    }
}

/// A hash of everything that is to be run.
fn plan(cells: &[Cell]) -> String {
    let mut text = String::new();
    for cell in cells {
        text += &format!("{}\n", cell.name());
        for case in &cell.cases {
            text += &format!(" {}\n", case.label());
        }
    }
    format!("{:016x}", fnv1a(text.as_bytes()))
}

/// FNV-1a with 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rstest::rstest;

    use super::*;
    use crate::graphtest::load::builtin;
    use crate::graphtest::run::Named;
    use crate::graphtest::target::built_in;
    use crate::lab::Backing;

    #[rstest]
    #[case("1/1", Some((1, 1)))]
    #[case("2/3", Some((2, 3)))]
    #[case("0/3", None)]
    #[case("4/3", None)]
    #[case("1/0", None)]
    #[case("1", None)]
    #[case("a/b", None)]
    fn shards_are_counted_from_one(#[case] text: &str, #[case] expected: Option<(usize, usize)>) {
        assert_eq!(
            text.parse::<Shard>().ok().map(|s| (s.index, s.of)),
            expected
        );
    }

    // The values of the hash's own reference (test vectors of draft-eastlake-fnv).
    #[rstest]
    #[case("", 0xcbf2_9ce4_8422_2325)]
    #[case("a", 0xaf63_dc4c_8601_ec8c)]
    #[case("foobar", 0x8594_4171_f739_67e8)]
    fn the_hash_is_that_of_the_reference(#[case] text: &str, #[case] hash: u64) {
        assert_eq!(fnv1a(text.as_bytes()), hash);
    }

    fn cells(backings: usize) -> Vec<Cell> {
        let library = builtin().unwrap();
        let cases: Vec<_> = library.cases().take(7).cloned().collect();
        let vfs = built_in().into_iter().find(|t| t.name() == "vfs").unwrap();
        (0..backings)
            .map(|i| Cell {
                target: Arc::clone(&vfs),
                backing: format!("dir:/{i}").parse::<Backing>().unwrap(),
                named: Named::ALL,
                cases: cases.clone(),
                required: Arc::default(),
            })
            .collect()
    }

    #[rstest]
    #[case(1, 3)]
    #[case(2, 2)]
    #[case(10, 3)]
    #[case(10, 10)]
    fn parts_are_disjoint_even_and_all_there_is(#[case] backings: usize, #[case] of: usize) {
        let labels = |cells: &[Cell]| -> Vec<String> {
            let of = |c: &Cell| -> Vec<String> {
                let cases = c
                    .cases
                    .iter()
                    .map(|k| format!("{} {}", c.name(), k.label()));
                cases.collect()
            };
            cells.iter().flat_map(of).collect()
        };
        let mut all = Vec::new();
        let mut sizes = Vec::new();
        for index in 1..=of {
            let (mine, part) = Shard { index, of }.take(cells(backings)).unwrap();
            assert_eq!(part.plan, plan(&cells(backings)));
            assert_eq!(part.cells, backings);
            sizes.push(if backings == 1 {
                mine[0].cases.len()
            } else {
                mine.len()
            });
            all.extend(labels(&mine));
        }
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        let mut whole = labels(&cells(backings));
        whole.sort();
        all.sort();
        assert_eq!(all, whole);
    }

    #[test]
    fn a_part_is_the_same_on_every_machine() {
        let (mine, _) = Shard { index: 1, of: 3 }.take(cells(10)).unwrap();
        let names: Vec<String> = mine.iter().map(|c| c.backing.to_string()).collect();
        assert_eq!(names, EXPECTED);
        assert!(Shard { index: 1, of: 11 }.take(cells(10)).is_err());
        assert!(Shard { index: 1, of: 8 }.take(cells(1)).is_err());
    }

    /// Worked out once; another order would give each machine other cells than the release before.
    const EXPECTED: &[&str] = &["dir:/0", "dir:/3", "dir:/6", "dir:/9"];
}
