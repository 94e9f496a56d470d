//! One run: clients and an administrator at work while things go wrong, and the judgement at the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvd::doors::Random;
use kvd::resp::Reply;
use kvd_tests::history::{Op, Record, keys};
use tokio::time::{Instant, sleep, timeout};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clients::{self, Client};
use crate::net::Wires;
use crate::world::{MEMBERS, World, client_addr, name, raft_addr, say};

const CLIENTS: usize = 4;

/// The place of the one who commands the cluster, and of the clients behind it.
const ADMIN: usize = 10;

/// For how long things go wrong.
const FAULT_TIME: Duration = Duration::from_secs(20);

/// How long a healed cluster may take to be level.
const HEAL_TIME: Duration = Duration::from_secs(90);

/// How often what must hold at all times is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

type Shared = Arc<tokio::sync::Mutex<World>>;

/// Asks any member; who is outside may be a cluster of its own.
async fn command(
    wires: &Arc<Wires>,
    random: &Random,
    outside: Option<usize>,
    args: &[&str],
) -> Option<Reply> {
    let inside: Vec<usize> = (0..MEMBERS).filter(|n| outside != Some(*n)).collect();
    let n = inside[random.next() as usize % inside.len()];
    let mut client = Client::connect(&wires.at(ADMIN), &client_addr(n)).await?;
    client.call(args).await
}

/// Takes members out and in, and moves leadership, until told to stop.
async fn administer(
    world: Shared,
    wires: Arc<Wires>,
    random: Random,
    stop: Arc<AtomicBool>,
) -> Result<(), String> {
    loop {
        sleep(Duration::from_millis(300 + random.next() % 3000)).await;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if random.next().is_multiple_of(3) {
            let to = name(random.next() as usize % MEMBERS);
            say!("leadership is to move to {to}");
            let outside = world.lock().await.outside;
            drop(command(&wires, &random, outside, &["RAFT.TRANSFER_LEADER", &to]).await);
            continue;
        }
        let outside = world.lock().await.outside;
        let n = outside.unwrap_or(random.next() as usize % MEMBERS);
        let (name, addr) = (name(n), raft_addr(n));
        let args = match outside {
            Some(_) => vec!["JOIN", &name, &addr],
            None => vec!["LEAVE", &name],
        };
        say!("{}", args.join(" "));
        // Once begun it is carried through: what is half done is another's to end.
        loop {
            let reply = command(&wires, &random, outside, &args).await;
            say!("{}: {reply:?}", args.join(" "));
            let said = match &reply {
                Some(Reply::Ok) => break,
                Some(Reply::Error(text)) => text.to_string(),
                _ => String::new(),
            };
            // An answer that was lost: it is done.
            if said.contains("no member") {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        let mut world = world.lock().await;
        match outside {
            Some(_) => world.outside = None,
            None => world.renew(n).await?,
        }
    }
}

/// Waits until all members are level and alike.
async fn level(world: &Shared, wires: &Arc<Wires>, random: &Random) -> Result<(), String> {
    let deadline = Instant::now() + HEAL_TIME;
    let mut last = None;
    while Instant::now() < deadline {
        let outside = world.lock().await.outside;
        let answer = command(wires, random, outside, &["RAFT.COMPARE"]).await;
        if let Some(Reply::Array(parts)) = &answer
            && let [_, Reply::Bulk(verdict), Reply::Array(members)] = &parts[..]
        {
            if &verdict[..] == b"different" {
                return Err(format!("the members' contents differ: {members:?}"));
            }
            let expected = MEMBERS - usize::from(outside.is_some());
            if &verdict[..] == b"equal" && members.len() == expected {
                return Ok(());
            }
        }
        last = answer;
        sleep(Duration::from_millis(200)).await;
    }
    let statuses = world.lock().await.statuses();
    Err(format!("it does not heal: {statuses}; last: {last:?}"))
}

async fn live(seed: u64) -> Result<String, String> {
    let temp = tempfile::tempdir().map_err(|error| error.to_string())?;
    let random = Random::from_seed(seed);
    let wires = Wires::new(Random::from_seed(random.next()));
    let mut world = World::new(&random, wires.clone(), temp);
    world.start_all().await?;
    world.look()?;
    let calm = Random::from_seed(random.next());
    for n in 1..MEMBERS - 1 {
        let mut first = Client::connect(&wires.at(ADMIN), &client_addr(0)).await;
        let first = first.as_mut().ok_or("node0 does not answer")?;
        let joined = first.call(&["JOIN", &name(n), &raft_addr(n)]).await;
        if joined != Some(Reply::Ok) {
            return Err(format!("JOIN {}: {joined:?}", name(n)));
        }
    }
    let world: Shared = Arc::new(tokio::sync::Mutex::new(world));
    let (record, stop) = (
        Arc::<Mutex<Record>>::default(),
        Arc::new(AtomicBool::new(false)),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|id| {
            tokio::spawn(clients::run(
                id,
                wires.at(ADMIN + 1 + id),
                (0..MEMBERS).map(client_addr).collect(),
                record.clone(),
                stop.clone(),
                Random::from_seed(random.next()),
            ))
        })
        .collect();
    let admin = tokio::spawn(administer(
        world.clone(),
        wires.clone(),
        Random::from_seed(random.next()),
        stop.clone(),
    ));
    let (watched, heals) = (world.clone(), stop.clone());
    let mut watch = tokio::spawn(async move {
        loop {
            let mut world = watched.lock().await;
            world.look()?;
            if !heals.load(Ordering::Relaxed) {
                world.strike().await;
            }
            drop(world);
            sleep(LOOK_EVERY).await;
        }
        #[expect(unreachable_code, reason = "it says what kind of error ends it")]
        Ok::<(), String>(())
    });
    let faults = async {
        let until = Instant::now() + FAULT_TIME;
        while Instant::now() < until {
            sleep(Duration::from_millis(50 + calm.next() % 1200)).await;
            world.lock().await.fault().await?;
        }
        say!("all heals");
        let mut healed = world.lock().await;
        healed.heal();
        healed.start_all().await?;
        stop.store(true, Ordering::Relaxed);
        drop(healed);
        for client in clients {
            client.await.map_err(|error| error.to_string())?;
        }
        timeout(2 * HEAL_TIME, admin)
            .await
            .map_err(|_| "a change of members does not end".to_owned())?
            .map_err(|error| error.to_string())??;
        level(&world, &wires, &calm).await?;
        for n in 0..MEMBERS {
            if world.lock().await.outside == Some(n) {
                continue;
            }
            let mut client = Client::connect(&wires.at(ADMIN), &client_addr(n)).await;
            let client = client.as_mut().ok_or("a healed node does not answer")?;
            for key in keys() {
                clients::call(client, &record, key, Op::Get).await;
            }
        }
        Ok::<(), String>(())
    };
    tokio::select! {
        biased;
        seen = &mut watch => seen.map_err(|error| error.to_string())??,
        done = faults => done?,
    }
    watch.abort();
    let mut world = world.lock().await;
    world.look()?;
    let record = record.lock().unwrap();
    record.check()?;
    let (done, unknown) = record.counts();
    let hash = *wires.hash.lock().unwrap();
    Ok(format!(
        "seed={seed} done={done} unknown={unknown} refused={} faults={} entries={} terms={} \
         hash={hash:016x}",
        record.refused,
        world.faults,
        world.applied.len(),
        world.leaders.len(),
    ))
}

/// One run.
pub(crate) fn run(seed: u64) -> Result<String, String> {
    if std::env::var_os("KVD_SIMULATION_QUIET").is_none() {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .without_time()
            .with_ansi(false);
        let targets =
            tracing_subscriber::filter::Targets::new().with_target("kvd", tracing::Level::INFO);
        tracing_subscriber::registry()
            .with(lines)
            .with(targets)
            .init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(live(seed))
}
