//! The doors between a node and the world: network, worker threads, wall clock, randomness, tasks.
//!
//! A node is built from these and holds no global state, so a test can hand it a simulated world.
//! Monotonic time is `tokio::time::Instant`, which a paused runtime controls.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// A future of the doors, boxed so that they stay object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Both directions of one connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {
    /// A way to write from another thread while the owner of the connection writes nothing, where
    /// there is one.
    fn aside(&self) -> Option<Arc<dyn Aside>> {
        None
    }

    /// Takes the connection off the runtime that it belongs to; what comes out puts it on the one
    /// that calls it. Gives it back where that cannot be done.
    fn detach(self: Box<Self>) -> Result<Detached, Stream>;
}

/// A connection on its way from one runtime to another.
pub type Detached = Box<dyn FnOnce() -> io::Result<Stream> + Send>;

impl Io for tokio::net::TcpStream {
    fn detach(self: Box<Self>) -> Result<Detached, Stream> {
        Err(self)
    }
}

impl Io for tokio::io::DuplexStream {
    fn detach(self: Box<Self>) -> Result<Detached, Stream> {
        Err(self)
    }
}

impl<R, W> Io for tokio::io::Join<R, W>
where
    R: AsyncRead + Send + Sync + Unpin + 'static,
    W: AsyncWrite + Send + Sync + Unpin + 'static,
{
    fn detach(self: Box<Self>) -> Result<Detached, Stream> {
        Err(self)
    }
}

/// Writes beside the owner of a connection.
pub trait Aside: Send + Sync {
    /// Writes what the connection takes at once; never waits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when it takes nothing; otherwise the connection has failed.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

/// One connection, whatever carries it.
pub type Stream = Box<dyn Io>;

/// Opens and accepts connections.
pub trait Net: Send + Sync {
    /// Listens on `addr`, `host:port`; port 0 picks a free one.
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;

    /// Connects to `addr`, `host:port`; Nagle's delay is off.
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
}

/// A bound address.
pub trait Listener: Send {
    /// The next connection with its peer's address as text.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>>;

    /// The address that was bound, with its real port.
    fn local_addr(&self) -> String;
}

/// Starts the workers that may block: log writes, apply, snapshots.
pub trait Workers: Send + Sync {
    /// Calls `run` once after each wake-up, in a thread of its own; wake-ups that come while it
    /// runs are joined into one more call. `run` returning `false` ends the worker.
    fn start(&self, name: &'static str, run: Box<dyn FnMut() -> bool + Send>) -> Arc<dyn Wake>;

    /// Runs one job that may block, as a long read does, beside all others.
    fn run(&self, job: Box<dyn FnOnce() + Send>);
}

/// Runs `job` where it may block, and waits for what it gives; none when it panicked.
pub async fn blocking<T: Send + 'static>(
    workers: &dyn Workers,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, wait) = oneshot::channel();
    // Whoever waited may have gone.
    workers.run(Box::new(move || drop(done.send(job()))));
    wait.await.ok()
}

/// Wakes one worker.
pub trait Wake: Send + Sync {
    /// Makes the worker run (once more) soon. Never blocks.
    fn wake(&self);
}

/// The time since something long ago, for differences: what an engine's calls take.
pub fn stopwatch() -> std::time::Duration {
    static BEGAN: OnceLock<tokio::time::Instant> = OnceLock::new();
    BEGAN.get_or_init(tokio::time::Instant::now).elapsed()
}

/// The wall clock. Only a leader stamps entries with it, through a guard against jumps.
pub trait Clock: Send + Sync {
    /// Microseconds since the Unix epoch, as far as this machine knows.
    fn wall_us(&self) -> u64;

    /// The same in milliseconds.
    fn wall_ms(&self) -> u64 {
        self.wall_us() / 1000
    }
}

/// All doors of one node.
#[derive(Clone)]
pub struct Doors {
    /// Connections.
    pub net: Arc<dyn Net>,
    /// Blocking work.
    pub workers: Arc<dyn Workers>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Random,
}

/// The one source of randomness of a node.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// A source that always gives the same numbers for the same seed.
    pub fn from_seed(seed: u64) -> Self {
        Random(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A source seeded by the operating system.
    pub fn from_os() -> Self {
        Self::from_seed(rand::random())
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        self.0
            .lock()
            .expect("the generator cannot panic")
            .next_u64()
    }
}

/// What belongs to one node among the tasks of a runtime.
pub struct NodeScope {
    random: Random,
    /// Handles to end all tasks of the node, as a crash does; kept by simulated worlds only.
    tasks: Option<Mutex<Vec<tokio::task::AbortHandle>>>,
    pause: Arc<Mutex<Pause>>,
}

/// Whether a node's tasks run, and those that wait until they do.
#[derive(Default)]
struct Pause {
    paused: bool,
    waiting: Vec<Waker>,
}

/// A task that does nothing while its node is paused.
struct Pausable<F> {
    future: Pin<Box<F>>,
    pause: Arc<Mutex<Pause>>,
}

impl<F: Future> Future for Pausable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut pause = self.pause.lock().expect("no panic while held");
            if pause.paused {
                pause.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.future.as_mut().poll(context)
    }
}

impl NodeScope {
    /// A node's scope. With `crashable` its tasks are remembered, for [`crash`](Self::crash).
    pub fn new(random: Random, crashable: bool) -> Arc<Self> {
        Arc::new(NodeScope {
            random,
            tasks: crashable.then(Mutex::default),
            pause: Arc::default(),
        })
    }

    /// Spawns a task of the node on a runtime.
    pub fn spawn_on<F>(
        self: &Arc<Self>,
        runtime: &tokio::runtime::Handle,
        future: F,
    ) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let future = NODE.scope(self.clone(), future);
        let Some(tasks) = &self.tasks else {
            return runtime.spawn(future);
        };
        let handle = runtime.spawn(Pausable {
            future: Box::pin(future),
            pause: self.pause.clone(),
        });
        tasks
            .lock()
            .expect("no panic while held")
            .push(handle.abort_handle());
        handle
    }

    /// Stops all tasks of the node where they stand until [`resume`](Self::resume), as SIGSTOP stops
    /// a process: time goes on without it. Only for a scope whose tasks are remembered.
    pub fn pause(&self) {
        self.pause.lock().expect("no panic while held").paused = true;
    }

    /// Lets the tasks of the node go on.
    pub fn resume(&self) {
        let waiting = {
            let mut pause = self.pause.lock().expect("no panic while held");
            pause.paused = false;
            std::mem::take(&mut pause.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    /// Ends all tasks of the node where they stand, and waits until they are gone.
    pub async fn crash(&self) {
        let Some(tasks) = &self.tasks else { return };
        loop {
            let left = std::mem::take(&mut *tasks.lock().expect("no panic while held"));
            if left.iter().all(tokio::task::AbortHandle::is_finished) {
                return;
            }
            for task in &left {
                task.abort();
            }
            while !left.iter().all(tokio::task::AbortHandle::is_finished) {
                tokio::task::yield_now().await;
            }
        }
    }
}

tokio::task_local! {
    static NODE: Arc<NodeScope>;
}

/// Runs `future` as a part of `node`: tasks it spawns belong to the node too.
pub fn in_scope<F: Future>(node: Arc<NodeScope>, future: F) -> impl Future<Output = F::Output> {
    NODE.scope(node, future)
}

/// Spawns a task that belongs to the same node as the one that calls.
#[expect(
    clippy::disallowed_methods,
    reason = "the door behind which tasks are spawned"
)]
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match NODE.try_with(Clone::clone) {
        Ok(node) => node.spawn_on(&tokio::runtime::Handle::current(), future),
        Err(_) => tokio::spawn(future),
    }
}

/// Spawns such a task on another runtime.
pub fn spawn_on<F>(runtime: &tokio::runtime::Handle, future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    match NODE.try_with(Clone::clone) {
        Ok(node) => drop(node.spawn_on(runtime, future)),
        Err(_) => drop(runtime.spawn(future)),
    }
}

/// A generator of the node that calls, or one seeded by the operating system outside of any.
pub(crate) fn scoped_rng() -> StdRng {
    match NODE.try_with(|node| node.random.next()) {
        Ok(seed) => StdRng::seed_from_u64(seed),
        Err(_) => StdRng::seed_from_u64(rand::random()),
    }
}

/// Jobs for one worker, in the order they were submitted.
pub struct Queue<J> {
    jobs: Mutex<VecDeque<J>>,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Queue {
            jobs: Mutex::new(VecDeque::new()),
        }
    }
}

impl<J> Queue<J> {
    /// Adds a job at the end.
    pub fn push(&self, job: J) {
        self.jobs
            .lock()
            .expect("no panic while held")
            .push_back(job);
    }

    fn is_empty(&self) -> bool {
        self.jobs.lock().expect("no panic while held").is_empty()
    }

    /// Takes all jobs that wait.
    pub fn take_all(&self) -> VecDeque<J> {
        std::mem::take(&mut *self.jobs.lock().expect("no panic while held"))
    }
}

/// A worker with its queue.
pub struct Worker<J> {
    queue: Arc<Queue<J>>,
    handle: Arc<Mutex<Handle<J>>>,
    wake: Arc<dyn Wake>,
}

/// Gets all jobs that wait, and returns whether to go on.
type Handle<J> = Box<dyn FnMut(VecDeque<J>) -> bool + Send>;

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Worker {
            queue: self.queue.clone(),
            handle: self.handle.clone(),
            wake: self.wake.clone(),
        }
    }
}

impl<J: Send + 'static> Worker<J> {
    /// Starts a worker; `handle` gets all jobs that wait at once and returns whether to go on.
    pub fn start(
        workers: &dyn Workers,
        name: &'static str,
        handle: impl FnMut(VecDeque<J>) -> bool + Send + 'static,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let handle: Arc<Mutex<Handle<J>>> = Arc::new(Mutex::new(Box::new(handle)));
        let (jobs, own) = (queue.clone(), handle.clone());
        let run = move || {
            let mut handle = own.lock().expect("no panic while held");
            let goes_on = handle(jobs.take_all());
            if !goes_on {
                *handle = Box::new(|_| false);
            }
            goes_on
        };
        let wake = workers.start(name, Box::new(run));
        Worker {
            queue,
            handle,
            wake,
        }
    }

    /// Drops the jobs that wait.
    pub fn clear(&self) {
        drop(self.queue.take_all());
    }

    /// Hands over a job. Never blocks.
    pub fn submit(&self, job: J) {
        self.queue.push(job);
        self.wake.wake();
    }

    /// Does a job at once and in this thread, where the worker has nothing to do; otherwise hands
    /// it over. For short jobs: waking a thread may take longer.
    pub fn run(&self, job: J) {
        let Ok(mut handle) = self.handle.try_lock() else {
            return self.submit(job);
        };
        if !self.queue.is_empty() {
            drop(handle);
            return self.submit(job);
        }
        if !handle(VecDeque::from([job])) {
            *handle = Box::new(|_| false);
            drop(handle);
            // The worker itself ends when it meets that.
            self.wake.wake();
        }
    }
}

/// The real world: operating system threads.
pub struct Threads;

struct ThreadWake {
    pending: Mutex<bool>,
    signal: Condvar,
}

impl Wake for ThreadWake {
    fn wake(&self) {
        let mut pending = self.pending.lock().expect("no panic while held");
        if !*pending {
            *pending = true;
            self.signal.notify_one();
        }
    }
}

impl Workers for Threads {
    fn start(&self, name: &'static str, mut run: Box<dyn FnMut() -> bool + Send>) -> Arc<dyn Wake> {
        let wake = Arc::new(ThreadWake {
            pending: Mutex::new(false),
            signal: Condvar::new(),
        });
        let own = wake.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the door behind which threads are started"
        )]
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                loop {
                    let mut pending = own.pending.lock().expect("no panic while held");
                    while !*pending {
                        pending = own.signal.wait(pending).expect("no panic while held");
                    }
                    *pending = false;
                    drop(pending);
                    if !run() {
                        return;
                    }
                }
            })
            .expect("the operating system gives a thread at start");
        wake
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the door behind which jobs that block run"
    )]
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(job);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_job_runs_in_place_only_when_none_waits_before_it() {
        let (told, jobs) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let worker = Worker::start(&Threads, "test", move |jobs| {
            for job in jobs {
                let name = std::thread::current().name().map(str::to_owned);
                told.send((job, name.as_deref() == Some("test"))).unwrap();
                if job == 2 {
                    wait.recv().unwrap();
                }
                if job == 5 {
                    return false;
                }
            }
            true
        });
        worker.run(1);
        assert_eq!(jobs.recv().unwrap(), (1, false));
        worker.submit(2);
        assert_eq!(jobs.recv().unwrap(), (2, true));
        worker.run(3);
        worker.run(4);
        go.send(()).unwrap();
        assert_eq!(jobs.recv().unwrap(), (3, true));
        assert_eq!(jobs.recv().unwrap(), (4, true));
        worker.submit(5);
        assert_eq!(jobs.recv().unwrap(), (5, true));
        worker.run(6);
        worker.submit(7);
        assert!(jobs.recv().is_err(), "nothing runs behind the end");
    }
}
