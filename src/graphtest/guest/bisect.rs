//! Which of two neighbouring kernels a scenario fails on first: each kernel is judged several times, and the two ends before what lies
//! between.

use std::fmt;

/// What came of a scenario under a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed each time, so often.
    Good(usize),
    /// It did not.
    Bad {
        /// How often.
        times: usize,
        /// Out of so many.
        of: usize,
        /// What was said of it the first time.
        why: String,
    },
    /// Nothing came of it: the kernel cannot be had or does not boot.
    Untestable(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(of) => write!(f, "good: passed {of} of {of} times"),
            Self::Bad { times, of, why } => {
                write!(f, "bad: did not pass {times} of {of} times: {why}")
            }
            Self::Untestable(why) => write!(f, "cannot be judged: {why}"),
        }
    }
}

/// The last good and the first bad one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its index.
    pub good: usize,
    /// Its index; what lies between the two cannot be judged.
    pub bad: usize,
}

/// Why there is no pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPair {
    /// The end that was said to be good is not.
    #[error("the good end is not good: {0}")]
    NotGood(Verdict),
    /// The end that was said to be bad is not.
    #[error("the bad end is not bad: {0}")]
    NotBad(Verdict),
}

/// Looks for the pair among `count` kernels, at least two, of which the first is said to be good and the last to be bad. `judge` is asked
/// at most once about each.
///
/// # Errors
/// One of the ends is not what it is said to be.
pub fn bisect(count: usize, judge: &mut dyn FnMut(usize) -> Verdict) -> Result<Pair, NoPair> {
    let last = count.saturating_sub(1);
    match judge(0) {
        Verdict::Good(_) => {}
        other => return Err(NoPair::NotGood(other)),
    }
    match judge(last) {
        Verdict::Bad { .. } => {}
        other => return Err(NoPair::NotBad(other)),
    }
    let mut pair = Pair { good: 0, bad: last };
    let mut open: Vec<usize> = (1..last).collect();
    // Of two that are as near to the middle, the first.
    while let Some(next) = open
        .iter()
        .copied()
        .min_by_key(|i| (i * 2).abs_diff(pair.good + pair.bad))
    {
        match judge(next) {
            Verdict::Good(_) => pair.good = next,
            Verdict::Bad { .. } => pair.bad = next,
            Verdict::Untestable(_) => {}
        }
        open.retain(|i| *i != next && *i > pair.good && *i < pair.bad);
    }
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// `g` good, `b` bad, `?` cannot be judged.
    fn judged(kernels: &str) -> (Result<Pair, NoPair>, Vec<usize>) {
        let mut asked = Vec::new();
        let pair = bisect(kernels.len(), &mut |i| {
            asked.push(i);
            match kernels.as_bytes()[i] {
                b'g' => Verdict::Good(3),
                b'b' => Verdict::Bad {
                    times: 3,
                    of: 3,
                    why: "no".to_string(),
                },
                _ => Verdict::Untestable("gone".to_string()),
            }
        });
        (pair, asked)
    }

    #[rstest]
    #[case("gb", 0, 1, 2)]
    #[case("gbbbbbb", 0, 1, 4)]
    #[case("ggggggb", 5, 6, 5)]
    #[case("gggbbbb", 2, 3, 5)]
    #[case("g?b", 0, 2, 3)]
    #[case("gg??bbb", 1, 4, 6)]
    #[case("g??g??b", 3, 6, 5)]
    fn the_pair_is_found_and_nothing_asked_twice(
        #[case] kernels: &str,
        #[case] good: usize,
        #[case] bad: usize,
        #[case] at_most: usize,
    ) {
        let (pair, mut asked) = judged(kernels);
        assert_eq!(pair, Ok(Pair { good, bad }), "asked {asked:?}");
        let count = asked.len();
        assert!(count <= at_most, "asked {asked:?}");
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked.len(), count);
    }

    #[test]
    fn ends_that_are_not_as_said_are_told() {
        let (pair, asked) = judged("bbb");
        let said = pair.unwrap_err().to_string();
        assert!(
            said.starts_with("the good end is not good: bad: did not pass 3 of 3"),
            "{said}"
        );
        assert_eq!(asked, [0]);
        assert!(matches!(
            judged("ggg").0,
            Err(NoPair::NotBad(Verdict::Good(3)))
        ));
        let said = judged("?b").0.unwrap_err().to_string();
        assert!(said.ends_with("cannot be judged: gone"), "{said}");
    }
}
