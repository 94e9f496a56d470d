//! Carries out commands about the connection, the server and the cluster.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::connection::{Connection, Queue, internal};
use super::reads::modified;
use super::{ClientEntry, Service, cluster, info};
use crate::command::effect::{
    Client, ClientKind, Cluster, Config, Credentials, Effect, Hello, Latency, LibraryInfo,
    ReplyMode, SlowLog, Successor,
};
use crate::command::{self, Kind, Spec};
use crate::doors;
use crate::node::{JoinRequest, ReadLevel, Role};
use crate::outcome::{self, Fate};
use crate::resp::{Protocol, Reply, glob};

impl<S: Service> Connection<S> {
    /// The reply, unless there is none to give.
    pub(super) async fn perform(&mut self, effect: Effect) -> Option<Reply> {
        Some(match effect {
            Effect::Exec => self.exec().await,
            Effect::Multi => {
                if self.queue.is_some() {
                    return Some(Reply::error("ERR MULTI calls can not be nested"));
                }
                self.queue = Some(Queue::default());
                Reply::Ok
            }
            Effect::Discard => {
                if self.queue.take().is_none() {
                    return Some(Reply::error("ERR DISCARD without MULTI"));
                }
                self.watched.clear();
                Reply::Ok
            }
            Effect::Watch { keys } => self.watch(keys).await,
            other => return self.perform_plain(other).await,
        })
    }

    async fn perform_plain(&mut self, effect: Effect) -> Option<Reply> {
        let service = self.shared.service.clone();
        Some(match effect {
            Effect::Reply(reply) => reply,
            Effect::Multi | Effect::Exec | Effect::Discard | Effect::Watch { .. } => internal(),
            Effect::Unwatch => {
                self.watched.clear();
                Reply::Ok
            }
            Effect::Quit => {
                self.closing = true;
                Reply::Ok
            }
            Effect::Hello(hello) => self.hello(hello),
            Effect::Reset => {
                self.copy = None;
                (self.queue, self.aware, self.readonly) = (None, false, false);
                self.redirectable = false;
                self.stop_monitoring();
                self.watched.clear();
                self.protocol = Protocol::Resp2;
                self.reply_mode = ReplyMode::On;
                self.authenticated = self.shared.settings().password.is_none();
                let mut about = self.entry.about.lock().expect("no panic while held");
                (about.name, about.protocol, about.readonly) = (String::new(), 2, false);
                Reply::simple("RESET")
            }
            Effect::Auth(credentials) => self.auth(&credentials),
            Effect::ReplyMode(mode) => {
                // Who wants none is not to be told so, nor to be silent for one reply only.
                if self.reply_mode != ReplyMode::Off || mode == ReplyMode::On {
                    self.reply_mode = mode;
                }
                if mode != ReplyMode::On {
                    return None;
                }
                Reply::Ok
            }
            Effect::Client(client) => self.client(client),
            Effect::Config(config) => self.config(config),
            Effect::Info { sections } => self.info(&sections).await,
            Effect::Time => {
                let us = self.shared.doors.clock.wall_us();
                Reply::Array(vec![
                    Reply::bulk((us / 1_000_000).to_string()),
                    Reply::bulk((us % 1_000_000).to_string()),
                ])
            }
            Effect::Role => cluster::role(&service.status()),
            Effect::LastSave => Reply::Int((self.shared.doors.clock.wall_ms() / 1000) as i64),
            Effect::SlowLog(what) => self.slow_log(what),
            Effect::Latency(what) => self.latency(what),
            Effect::Monitor => {
                if self.monitor.is_none() {
                    self.monitor = Some(self.shared.monitors.subscribe());
                }
                Reply::Ok
            }
            Effect::TransferLeader(to) => self.transfer_leader(to).await,
            Effect::AddNode { addr } => self.add_node(addr).await,
            Effect::RemoveNode(id) => {
                let members = service.status().members;
                match members.into_iter().find(|member| member.id == id) {
                    Some(member) => service.leave(member.member.name).await,
                    None => Reply::error("ERR node id does not exist"),
                }
            }
            Effect::Shutdown(shutdown) => {
                if shutdown.abort {
                    return Some(Reply::error("ERR No shutdown in progress."));
                }
                tracing::info!(client = %self.entry.addr, "shutdown was asked for");
                service.shutdown();
                self.closing = true;
                return None;
            }
            Effect::Sleep(time) => {
                self.while_connected(tokio::time::sleep(time)).await?;
                Reply::Ok
            }
            Effect::Join { name, addr, voter } => {
                service
                    .join(JoinRequest {
                        name,
                        raft_addr: addr,
                        voter,
                    })
                    .await
            }
            Effect::Compare => {
                let service = service.clone();
                self.while_connected(service.compare()).await?
            }
            Effect::Backup(what) => return self.backup(what).await,
            Effect::Leave { name } => service.leave(name).await,
            Effect::Cluster(what) => {
                self.aware = true;
                // Which nodes there are is of use only with their roles; who this one is, and how
                // the cluster does, is asked for when something is wrong.
                let hold = self.shared.settings().hold;
                if !matches!(what, Cluster::Info | Cluster::MyId)
                    && !service.leader_known(hold).await
                {
                    return Some(outcome::cluster_down());
                }
                let wall_ms = self.shared.doors.clock.wall_ms();
                cluster::reply(&what, &service.status(), wall_ms)
            }
            Effect::ReadOnly => self.set_readonly(true),
            Effect::ReadWrite => self.set_readonly(false),
            Effect::Asking => {
                self.aware = true;
                Reply::Ok
            }
            Effect::Wait { replicas, timeout } => {
                let wait = service.replicas(self.last_write, replicas, timeout);
                let holders = self.while_connected(wait).await?;
                Reply::Int(holders as i64)
            }
        })
    }

    fn slow_log(&self, what: SlowLog) -> Reply {
        let slow_log = &self.shared.slow_log;
        match what {
            SlowLog::Get(count) => slow_log.get(count),
            SlowLog::Len => Reply::Int(slow_log.len() as i64),
            SlowLog::Reset => {
                slow_log.reset();
                Reply::Ok
            }
        }
    }

    fn latency(&self, what: Latency) -> Reply {
        let spikes = &self.shared.spikes;
        match what {
            Latency::Latest => spikes.latest(),
            Latency::History(event) => spikes.history(&event),
            Latency::Reset(events) => spikes.reset(&events),
            Latency::Histogram(names) => {
                let wanted = |spec: &Spec| {
                    let container = spec.name.split('|').next();
                    names.is_empty()
                        || names
                            .iter()
                            .any(|name| name == spec.name || Some(name.as_str()) == container)
                };
                let histograms = self.shared.metrics.histograms(wanted);
                let commands = histograms.into_iter().map(|(name, calls, bounds)| {
                    let bounds = bounds
                        .into_iter()
                        .map(|(us, count)| (Reply::Int(us as i64), Reply::Int(count as i64)));
                    let fields = Reply::Map(vec![
                        (Reply::bulk("calls"), Reply::Int(calls as i64)),
                        (Reply::bulk("histogram_usec"), Reply::Map(bounds.collect())),
                    ]);
                    (Reply::bulk(name), fields)
                });
                Reply::Map(commands.collect())
            }
        }
    }

    async fn transfer_leader(&self, to: Successor) -> Reply {
        let service = &self.shared.service;
        let status = service.status();
        let to = match to {
            Successor::Any => None,
            Successor::This if status.role == Role::Leader => {
                return Reply::error("ERR You should send CLUSTER FAILOVER to a replica");
            }
            Successor::This => Some(status.id),
            Successor::Named(name) => {
                let named = status.members.iter().find(|member| {
                    member.member.name == name || format!("{:016x}", member.id) == name
                });
                match named {
                    Some(member) => Some(member.id),
                    None => return Reply::error("ERR invalid target node id"),
                }
            }
        };
        service.transfer(to).await
    }

    /// A node that is added without a name is called by its address.
    async fn add_node(&self, addr: String) -> Reply {
        let service = &self.shared.service;
        let name = addr.clone();
        let reply = service
            .join(JoinRequest {
                name: name.clone(),
                raft_addr: addr,
                voter: true,
            })
            .await;
        if reply.is_error() {
            return reply;
        }
        let status = service.status();
        let added = status
            .members
            .iter()
            .find(|member| member.member.name == name);
        match added {
            Some(member) => Reply::Array(vec![
                Reply::bulk(format!("{:016x}", member.id)),
                Reply::bulk(format!("{:032x}", status.cluster)),
            ]),
            None => internal(),
        }
    }

    fn set_readonly(&mut self, on: bool) -> Reply {
        (self.aware, self.readonly) = (true, on);
        self.entry
            .about
            .lock()
            .expect("no panic while held")
            .readonly = on;
        Reply::Ok
    }

    async fn watch(&mut self, keys: Vec<Bytes>) -> Reply {
        if self.queue.is_some() {
            return Reply::error("ERR WATCH inside MULTI is not allowed");
        }
        let read = self
            .shared
            .service
            .read(ReadLevel::Linearizable, self.last_write)
            .await;
        let reading = match read {
            Ok(reading) => reading,
            Err(reply) => return reply,
        };
        let workers = self.shared.doors.workers.clone();
        let seen = doors::blocking(&*workers, move || {
            let seen = modified(&reading, &keys);
            (keys, seen)
        });
        match seen.await {
            Some((keys, Ok(seen))) => {
                self.watched.extend(keys.into_iter().zip(seen));
                Reply::Ok
            }
            Some((_, Err(error))) => {
                tracing::error!(%error, "engine read failed");
                internal()
            }
            None => internal(),
        }
    }

    async fn exec(&mut self) -> Reply {
        let Some(queue) = self.queue.take() else {
            return Reply::error("ERR EXEC without MULTI");
        };
        let watched = std::mem::take(&mut self.watched);
        if queue.failed {
            return Reply::error("EXECABORT Transaction discarded because of previous errors.");
        }
        let leader = self.leader_elsewhere();
        if let Some(moved) = queue
            .requests
            .iter()
            .find_map(|r| self.redirected(r, leader.as_ref()))
        {
            return moved;
        }
        let (mut data, mut effects) = (Vec::new(), Vec::new());
        for (place, request) in queue.requests.into_iter().enumerate() {
            match request.spec.kind {
                Kind::Session(_) => effects.push((place, request)),
                Kind::Read(_) | Kind::Write(_) => data.push(request),
            }
        }
        let writes = data.iter().any(|request| request.spec.is_write());
        let started = Instant::now();
        let (data, replies) = if writes {
            match self.propose(&data, &watched, None).await {
                Ok(replies) => (data, replies),
                Err(reply) => return reply,
            }
        } else if !data.is_empty() || !watched.is_empty() {
            self.read_if(data, watched, true).await
        } else {
            (data, Vec::new())
        };
        if replies == [Reply::NullArray] {
            return Reply::NullArray;
        }
        // One error for all reads comes from the node, not from the commands: nothing ran.
        if !writes
            && let Some(first) = replies.first()
            && outcome::fate(first).is_some_and(|fate| fate != Fate::Refused)
        {
            return first.clone();
        }
        self.count(&data, &replies, started);
        let mut replies = replies.into_iter();
        let mut all = Vec::new();
        for (place, request) in effects {
            while all.len() < place {
                all.push(replies.next().unwrap_or_else(internal));
            }
            let effect = command::session(request.spec, &request.slices());
            all.push(match effect {
                Some(Ok(effect)) => {
                    let effect = match effect {
                        // A transaction does not wait, as in Redis.
                        Effect::Wait { replicas, .. } => Effect::Wait {
                            replicas,
                            timeout: Some(Duration::ZERO),
                        },
                        other => other,
                    };
                    self.perform_plain(effect).await.unwrap_or(Reply::Ok)
                }
                Some(Err(reply)) => reply,
                None => internal(),
            });
        }
        all.extend(replies);
        Reply::Array(all)
    }

    fn auth(&mut self, credentials: &Credentials) -> Reply {
        let settings = self.shared.settings();
        let Some(password) = &settings.password else {
            return match credentials.username.as_deref() {
                None => Reply::error(
                    "ERR AUTH <password> called without any password configured for the default \
                     user. Are you sure your configuration is correct?",
                ),
                Some(b"default") => Reply::Ok,
                Some(_) => wrong_password(),
            };
        };
        let user = credentials.username.as_deref().unwrap_or(b"default");
        if user == b"default" && equal(password.as_bytes(), &credentials.password) {
            self.authenticated = true;
            return Reply::Ok;
        }
        tracing::warn!(client = %self.entry.addr, "a wrong password was given");
        wrong_password()
    }

    fn hello(&mut self, hello: Hello) -> Reply {
        if let Some(credentials) = &hello.auth {
            let reply = self.auth(credentials);
            if reply.is_error() {
                return reply;
            }
        }
        if !self.authenticated {
            return Reply::error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
                 HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client \
                 and select the RESP protocol version at the same time",
            );
        }
        match hello.protocol {
            Some(3) => self.protocol = Protocol::Resp3,
            Some(_) => self.protocol = Protocol::Resp2,
            None => {}
        }
        let mut about = self.entry.about.lock().expect("no panic while held");
        if let Some(name) = hello.name {
            about.name = String::from_utf8_lossy(&name).into_owned();
        }
        about.protocol = self.protocol.version();
        drop(about);
        let leads = self.shared.service.status().role == Role::Leader;
        let text = |text: &'static str| Reply::bulk(text);
        Reply::Map(vec![
            (text("server"), text("redis")),
            (text("version"), text(info::REDIS_VERSION)),
            (text("proto"), Reply::Int(self.protocol.version())),
            (text("id"), Reply::Int(self.entry.id as i64)),
            (text("mode"), text("cluster")),
            (text("role"), text(if leads { "master" } else { "replica" })),
            (text("modules"), Reply::Array(Vec::new())),
        ])
    }

    fn client(&mut self, client: Client) -> Reply {
        let mut about = self.entry.about.lock().expect("no panic while held");
        about.command = "client";
        match client {
            Client::Id => Reply::Int(self.entry.id as i64),
            Client::SetName(name) => {
                about.name = String::from_utf8_lossy(&name).into_owned();
                Reply::Ok
            }
            Client::GetName if about.name.is_empty() => Reply::Null,
            Client::GetName => Reply::bulk(about.name.clone()),
            Client::KillAddr(addr) => {
                drop(about);
                match self.kill(|entry| entry.addr == addr) {
                    0 => Reply::error("ERR No such client"),
                    _ => Reply::Ok,
                }
            }
            Client::Kill(filter) => {
                drop(about);
                let me = self.entry.id;
                let killed = self.kill(|entry| {
                    filter.id.is_none_or(|id| entry.id == id)
                        && filter.addr.as_ref().is_none_or(|addr| entry.addr == *addr)
                        && filter
                            .local_addr
                            .as_ref()
                            .is_none_or(|addr| entry.local_addr == *addr)
                        && filter.kind.is_none_or(|kind| kind == ClientKind::Normal)
                        && (entry.id != me || !filter.skip_me)
                });
                Reply::Int(killed)
            }
            Client::Redirectable => {
                self.redirectable = true;
                Reply::Ok
            }
            Client::Pause { time, all } => {
                self.shared.pause.begin(time, all);
                Reply::Ok
            }
            Client::Unpause => {
                self.shared.pause.end();
                Reply::Ok
            }
            Client::SetInfo(property, value) => {
                let value = String::from_utf8_lossy(&value).into_owned();
                match property {
                    LibraryInfo::Name => about.library = value,
                    LibraryInfo::Version => about.library_version = value,
                }
                Reply::Ok
            }
            Client::Info => {
                drop(about);
                Reply::text(self.entry.line() + "\n")
            }
            Client::List { ids, kind } => {
                drop(about);
                let wanted = kind.is_none_or(|kind| kind == ClientKind::Normal);
                let clients = self.shared.clients.lock().expect("no panic while held");
                let lines = clients.values().filter(|entry| {
                    wanted && ids.as_ref().is_none_or(|ids| ids.contains(&entry.id))
                });
                Reply::text(lines.map(|entry| entry.line() + "\n").collect::<String>())
            }
        }
    }

    /// Closes the connections that are wanted, this one after its reply, and counts them.
    fn kill(&mut self, wanted: impl Fn(&ClientEntry) -> bool) -> i64 {
        let clients = self.shared.clients.lock().expect("no panic while held");
        let mut killed = 0;
        for entry in clients.values().filter(|entry| wanted(entry)) {
            killed += 1;
            if entry.id == self.entry.id {
                self.closing = true;
            } else {
                entry.kill();
            }
        }
        killed
    }

    fn config(&mut self, config: Config) -> Reply {
        let settings = self.shared.settings();
        match config {
            Config::Get(patterns) => {
                let values = info::settings(&settings);
                let matching = values.into_iter().filter(|(name, _)| {
                    patterns
                        .iter()
                        .any(|pattern| glob::matches(pattern, name.as_bytes(), true))
                });
                Reply::Map(
                    matching
                        .map(|(name, value)| (Reply::bulk(name), Reply::bulk(value)))
                        .collect(),
                )
            }
            Config::Set(pairs) => {
                let mut changed = (*settings).clone();
                let mut backend = Vec::new();
                for (name, value) in pairs {
                    let value = String::from_utf8_lossy(&value);
                    if name == info::BACKEND_OPTION {
                        backend.push(value.into_owned());
                    } else if let Err(reply) = info::set(&mut changed, &name, &value) {
                        return reply;
                    }
                }
                // When all else is right: what the engine has taken cannot be taken back.
                for option in backend {
                    if let Err(why) = self.shared.service.set_backend_option(&option) {
                        return info::set_failed(info::BACKEND_OPTION, &why);
                    }
                }
                self.shared.change_settings(changed);
                Reply::Ok
            }
            Config::ResetStat => {
                self.shared.metrics.reset();
                Reply::Ok
            }
            Config::Rewrite => Reply::error("ERR The server is running without a config file"),
        }
    }
}

fn wrong_password() -> Reply {
    Reply::error("WRONGPASS invalid username-password pair or user is disabled.")
}

/// Compares without telling by its time how far two passwords agree.
fn equal(a: &[u8], b: &[u8]) -> bool {
    use sha2::{Digest as _, Sha256};
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    a.iter().zip(b.iter()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}
