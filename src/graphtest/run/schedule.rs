//! Carrying out jobs on a few threads, as they come, with a time limit for each. A job past its limit is given up: its thread is left to itself, and
//! another takes its place.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::graphtest::Progress;

/// How often limits and interrupts are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How long jobs that are going on may take to end after an interrupt.
const GRACE: Duration = Duration::from_secs(5);

/// What became of a job.
#[derive(Debug)]
pub(super) enum Turn<R> {
    /// It ended with this.
    Ended(R),
    /// It panicked, with this message.
    Panicked(String),
    /// It was given up after its time limit.
    TimedOut(Arc<Progress>),
    /// It was given up after an interrupt.
    Abandoned,
}

/// Where jobs come from, and what becomes of them goes to.
pub(super) trait Feed<J, R> {
    /// The next job, to be begun at once; `None`: none until another one has ended.
    fn next(&mut self) -> Option<J>;
    /// How long it may take.
    fn limit(&self, job: &J) -> Duration;
    /// What became of it.
    fn ended(&mut self, job: &J, turn: Turn<R>);
}

/// What an orderly or interrupted end looks like.
pub(super) struct Limits<'a> {
    /// How many jobs at a time; at least one.
    pub(super) threads: usize,
    /// Once true, no job is begun any more, and those that go on get [`GRACE`].
    pub(super) stop: &'a dyn Fn() -> bool,
}

/// What is done with a job; the progress is looked at when it takes too long.
pub(super) type Work<J, R> = dyn Fn(&J, &Arc<Progress>) -> R + Send + Sync;

/// A job that a worker is at.
struct Running<J> {
    job: Arc<J>,
    /// When it is given up.
    until: Instant,
    progress: Arc<Progress>,
}

type Order<J> = (Arc<J>, Arc<Progress>);
type Answer<R> = (u64, Result<R, String>);

/// The threads, and who is at what.
struct Crew<J, R> {
    work: Arc<Work<J, R>>,
    answers: Sender<Answer<R>>,
    /// How many workers there have been.
    hired: u64,
    idle: Vec<(u64, Sender<Order<J>>)>,
    running: HashMap<u64, (Running<J>, Sender<Order<J>>)>,
}

/// Carries out what the feed gives, until it gives nothing and nothing is going on. The feed is asked and told from the calling thread.
pub(super) fn run<J, R>(feed: &mut impl Feed<J, R>, limits: &Limits<'_>, work: Arc<Work<J, R>>)
where
    J: Send + Sync + 'static,
    R: Send + 'static,
{
    let (sender, answers) = channel();
    let mut crew = Crew {
        work,
        answers: sender,
        hired: 0,
        idle: Vec::new(),
        running: HashMap::new(),
    };
    let mut stopped_at: Option<Instant> = None;
    loop {
        if stopped_at.is_none() && (limits.stop)() {
            stopped_at = Some(Instant::now());
            // What they hold is to be given back.
            crew.call_off();
        }
        while stopped_at.is_none()
            && crew.running.len() < limits.threads.max(1)
            && let Some(job) = feed.next()
        {
            let limit = feed.limit(&job);
            crew.begin(job, limit);
        }
        if crew.running.is_empty() {
            return;
        }
        if let Some((job, turn)) = crew.answer(&answers) {
            feed.ended(&job, turn);
        }
        let no_more_grace = stopped_at.is_some_and(|t| t.elapsed() >= GRACE);
        for (job, progress) in crew.give_up(no_more_grace) {
            let turn = if no_more_grace {
                Turn::Abandoned
            } else {
                Turn::TimedOut(progress)
            };
            feed.ended(&job, turn);
        }
    }
}

impl<J: Send + Sync + 'static, R: Send + 'static> Crew<J, R> {
    /// Hands a job to an idle worker, or to a new one.
    fn begin(&mut self, job: J, limit: Duration) {
        let (id, orders) = self.idle.pop().unwrap_or_else(|| self.hire());
        let (job, progress) = (Arc::new(job), Arc::<Progress>::default());
        // A worker ends only when its orders are dropped, so that sending cannot fail.
        let _ = orders.send((Arc::clone(&job), Arc::clone(&progress)));
        let now = Instant::now();
        let running = Running {
            job,
            // A limit beyond what a clock can say is none that is ever met.
            until: now.checked_add(limit).unwrap_or(now + FAR),
            progress,
        };
        self.running.insert(id, (running, orders));
    }

    fn hire(&mut self) -> (u64, Sender<Order<J>>) {
        self.hired += 1;
        let (id, (sender, orders)) = (self.hired, channel::<Order<J>>());
        let (work, answers) = (Arc::clone(&self.work), self.answers.clone());
        std::thread::spawn(move || {
            for (job, progress) in orders {
                let result = catch_unwind(AssertUnwindSafe(|| work(&job, &progress)));
                let result = result.map_err(|panic| panic_message(panic.as_ref()));
                if answers.send((id, result)).is_err() {
                    return;
                }
            }
        });
        (id, sender)
    }

    /// Waits a little for a worker to end its job.
    fn answer(&mut self, answers: &Receiver<Answer<R>>) -> Option<(Arc<J>, Turn<R>)> {
        let (id, result) = match answers.recv_timeout(TICK) {
            Ok(answer) => answer,
            // The crew itself holds a sender.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        // What comes from a worker that was given up is late.
        let (Running { job, progress, .. }, orders) = self.running.remove(&id)?;
        self.idle.push((id, orders));
        if progress.was_cut_short() {
            return Some((job, Turn::Abandoned));
        }
        Some((job, result.map_or_else(Turn::Panicked, Turn::Ended)))
    }

    /// Has those that are at something end it soon.
    fn call_off(&self) {
        for (running, _) in self.running.values() {
            running.progress.call_off();
        }
    }

    /// Gives up the workers that are past the limit, or all of them. They end with their next step at the latest.
    fn give_up(&mut self, all: bool) -> Vec<(Arc<J>, Arc<Progress>)> {
        let now = Instant::now();
        let late = self.running.extract_if(|_, (r, _)| all || r.until <= now);
        late.map(|(_, (r, _))| {
            r.progress.call_off();
            (r.job, r.progress)
        })
        .collect()
    }
}

/// A year.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Numbers from a list; what became of each, in words.
    struct Numbers {
        rest: std::vec::IntoIter<usize>,
        limit: Duration,
        ends: Vec<(usize, String)>,
    }

    impl Numbers {
        fn new(count: usize, limit_ms: u64) -> Self {
            Self {
                rest: (0..count).collect::<Vec<_>>().into_iter(),
                limit: Duration::from_millis(limit_ms),
                ends: Vec::new(),
            }
        }
    }

    impl Feed<usize, usize> for Numbers {
        fn next(&mut self) -> Option<usize> {
            self.rest.next()
        }

        fn limit(&self, _: &usize) -> Duration {
            self.limit
        }

        fn ended(&mut self, job: &usize, turn: Turn<usize>) {
            let end = match turn {
                Turn::Ended(r) => format!("ended {r}"),
                Turn::Panicked(why) => format!("panicked {why}"),
                Turn::TimedOut(_) => "timed out".to_string(),
                Turn::Abandoned => "abandoned".to_string(),
            };
            self.ends.push((*job, end));
        }
    }

    #[test]
    fn every_job_ends_once_whatever_it_does() {
        for threads in [1, 3] {
            let work = Arc::new(|job: &usize, _: &Arc<Progress>| {
                match job % 4 {
                    1 => panic!("job {job}"),
                    2 => std::thread::sleep(Duration::from_secs(2)),
                    _ => {}
                }
                *job
            });
            let mut feed = Numbers::new(8, 1000);
            let stop = || false;
            run(
                &mut feed,
                &Limits {
                    threads,
                    stop: &stop,
                },
                work,
            );
            feed.ends.sort();
            let expected: Vec<(usize, String)> = (0..8)
                .map(|j| match j % 4 {
                    1 => (j, format!("panicked job {j}")),
                    2 => (j, "timed out".to_string()),
                    _ => (j, format!("ended {j}")),
                })
                .collect();
            assert_eq!(feed.ends, expected);
        }
    }

    #[test]
    fn no_job_begins_after_a_stop_and_no_limit_is_too_long() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let work = Arc::new(move |job: &usize, _: &Arc<Progress>| {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(50));
            *job
        });
        let mut feed = Numbers::new(100, u64::MAX);
        let stop = || begun.load(Ordering::SeqCst) > 0;
        let limits = Limits {
            threads: 1,
            stop: &stop,
        };
        run(&mut feed, &limits, work);
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        assert_eq!(feed.ends, [(0, "ended 0".to_string())]);
    }
}
