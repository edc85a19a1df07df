//! Carrying out jobs on a few threads, with a time limit for each. A job past its limit is given up: its thread is left to itself, and
//! another takes its place.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::graphtest::Progress;

/// How often limits and interrupts are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How long jobs that are going on may take to end after an interrupt.
const GRACE: Duration = Duration::from_secs(5);

/// What happened to a job, by its index.
#[derive(Debug)]
pub(super) enum Turn<R> {
    /// It begins.
    Started,
    /// It ended with this.
    Ended(R),
    /// It panicked, with this message.
    Panicked(String),
    /// It was given up after its time limit.
    TimedOut(Arc<Progress>),
    /// It was given up after an interrupt.
    Abandoned,
}

/// What an orderly or interrupted end looks like.
pub(super) struct Limits<'a> {
    /// How many jobs at a time; at least one.
    pub(super) threads: usize,
    /// For one job.
    pub(super) timeout: Duration,
    /// Once true, no job is begun any more, and those that go on get [`GRACE`].
    pub(super) stop: &'a dyn Fn() -> bool,
}

/// What is done with a job; the progress is looked at when it takes too long.
pub(super) type Work<J, R> = dyn Fn(&J, &Arc<Progress>) -> R + Send + Sync;

/// A job that a worker is at.
struct Running {
    job: usize,
    since: Instant,
    progress: Arc<Progress>,
}

type Order = (usize, Arc<Progress>);
type Answer<R> = (u64, Result<R, String>);

/// The threads, and who is at what.
struct Crew<J, R> {
    jobs: Arc<Vec<J>>,
    work: Arc<Work<J, R>>,
    answers: Sender<Answer<R>>,
    /// How many workers there have been.
    hired: u64,
    idle: Vec<(u64, Sender<Order>)>,
    running: HashMap<u64, (Running, Sender<Order>)>,
}

/// Carries out all jobs, in order as far as threads allow, and tells `on` what happens, from the calling thread; when `on` returns
/// false, no job is begun any more.
pub(super) fn run<J, R>(
    jobs: Vec<J>,
    limits: &Limits<'_>,
    work: Arc<Work<J, R>>,
    mut on: impl FnMut(usize, Turn<R>) -> bool,
) where
    J: Send + Sync + 'static,
    R: Send + 'static,
{
    let mut queue: VecDeque<usize> = (0..jobs.len()).collect();
    let (sender, answers) = channel();
    let mut crew = Crew {
        jobs: Arc::new(jobs),
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
            queue.clear();
        }
        while crew.running.len() < limits.threads.max(1)
            && let Some(job) = queue.pop_front()
        {
            crew.begin(job);
            if !on(job, Turn::Started) {
                queue.clear();
            }
        }
        if crew.running.is_empty() {
            return;
        }
        if let Some((job, turn)) = crew.answer(&answers)
            && !on(job, turn)
        {
            queue.clear();
        }
        let no_more_grace = stopped_at.is_some_and(|t| t.elapsed() >= GRACE);
        for (job, progress) in crew.give_up(limits.timeout, no_more_grace) {
            let turn = if no_more_grace {
                Turn::Abandoned
            } else {
                Turn::TimedOut(progress)
            };
            if !on(job, turn) {
                queue.clear();
            }
        }
    }
}

impl<J: Send + Sync + 'static, R: Send + 'static> Crew<J, R> {
    /// Hands a job to an idle worker, or to a new one.
    fn begin(&mut self, job: usize) {
        let (id, orders) = self.idle.pop().unwrap_or_else(|| self.hire());
        let progress = Arc::<Progress>::default();
        // A worker ends only when its orders are dropped, so that sending cannot fail.
        let _ = orders.send((job, Arc::clone(&progress)));
        self.running.insert(
            id,
            (
                Running {
                    job,
                    since: Instant::now(),
                    progress,
                },
                orders,
            ),
        );
    }

    fn hire(&mut self) -> (u64, Sender<Order>) {
        self.hired += 1;
        let (id, (sender, orders)) = (self.hired, channel::<Order>());
        let (jobs, work, answers) = (
            Arc::clone(&self.jobs),
            Arc::clone(&self.work),
            self.answers.clone(),
        );
        std::thread::spawn(move || {
            for (job, progress) in orders {
                let result = catch_unwind(AssertUnwindSafe(|| work(&jobs[job], &progress)));
                let result = result.map_err(|panic| panic_message(panic.as_ref()));
                if answers.send((id, result)).is_err() {
                    return;
                }
            }
        });
        (id, sender)
    }

    /// Waits a little for a worker to end its job.
    fn answer(&mut self, answers: &Receiver<Answer<R>>) -> Option<(usize, Turn<R>)> {
        let (id, result) = match answers.recv_timeout(TICK) {
            Ok(answer) => answer,
            // The crew itself holds a sender.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        // What comes from a worker that was given up is late.
        let (Running { job, .. }, orders) = self.running.remove(&id)?;
        self.idle.push((id, orders));
        Some((job, result.map_or_else(Turn::Panicked, Turn::Ended)))
    }

    /// Gives up the workers that are past the limit, or all of them. They end once they are done with their job.
    fn give_up(&mut self, limit: Duration, all: bool) -> Vec<(usize, Arc<Progress>)> {
        let late = self
            .running
            .extract_if(|_, (r, _)| all || r.since.elapsed() >= limit);
        late.map(|(_, (r, _))| (r.job, r.progress)).collect()
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    fn limits(threads: usize, timeout_ms: u64, stop: &dyn Fn() -> bool) -> Limits<'_> {
        Limits {
            threads,
            timeout: Duration::from_millis(timeout_ms),
            stop,
        }
    }

    #[test]
    fn every_job_ends_once_whatever_it_does() {
        for threads in [1, 3] {
            let work = Arc::new(|job: &usize, _: &Arc<Progress>| {
                match job % 4 {
                    1 => panic!("job {job}"),
                    2 => std::thread::sleep(Duration::from_millis(2000)),
                    _ => {}
                }
                *job
            });
            let mut ends: Vec<(usize, String)> = Vec::new();
            let mut started = 0;
            run(
                (0..8).collect(),
                &limits(threads, 1000, &|| false),
                work,
                |job, turn| {
                    match turn {
                        Turn::Started => started += 1,
                        Turn::Ended(r) => ends.push((job, format!("ended {r}"))),
                        Turn::Panicked(why) => ends.push((job, format!("panicked {why}"))),
                        Turn::TimedOut(_) => ends.push((job, "timed out".to_string())),
                        Turn::Abandoned => ends.push((job, "abandoned".to_string())),
                    }
                    true
                },
            );
            ends.sort();
            let expected: Vec<(usize, String)> = (0..8)
                .map(|j| match j % 4 {
                    1 => (j, format!("panicked job {j}")),
                    2 => (j, "timed out".to_string()),
                    _ => (j, format!("ended {j}")),
                })
                .collect();
            assert_eq!((ends, started), (expected, 8));
        }
    }

    #[test]
    fn no_job_begins_after_a_stop_or_a_refusal() {
        let begun = Arc::new(AtomicUsize::new(0));
        for by_signal in [true, false] {
            begun.store(0, Ordering::SeqCst);
            let stop = AtomicBool::new(false);
            let count = Arc::clone(&begun);
            let work = Arc::new(move |_: &usize, _: &Arc<Progress>| {
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
            });
            let asked = || stop.load(Ordering::SeqCst);
            run(
                (0..100).collect(),
                &limits(1, 5000, &asked),
                work,
                |_, turn| {
                    let ended = matches!(turn, Turn::Ended(()));
                    stop.store(ended && by_signal, Ordering::SeqCst);
                    by_signal || !ended
                },
            );
            assert_eq!(begun.load(Ordering::SeqCst), 1);
        }
    }
}
