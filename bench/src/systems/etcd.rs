//! etcd, which is asked over gRPC.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::ports::free_port;
use super::{Setup, until};
use crate::cleanup::Process;
use crate::closed_loop::{self, Caller};
use crate::resp;
use crate::sample::Load;
use crate::work::{What, Work};

/// Clients share this many HTTP/2 connections.
const CONNECTIONS: usize = 10;

/// Clients that are tried where it shall have as many as suit it best.
const CLIENTS_TRIED: [u32; 4] = [50, 100, 200, 500];

/// How long an orderly stop may take.
const STOP_TIME: Duration = Duration::from_secs(30);

/// Clients that fill it.
const FILL_CLIENTS: u64 = 200;

/// Room for every version of every key that a run puts.
const QUOTA_BYTES: &str = "8589934592";

// The parts of etcd's messages that are needed here; see its `rpc.proto` and `kv.proto`.

/// `etcdserverpb.PutRequest`.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`, without its header.
#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// `etcdserverpb.RangeRequest` of one key, linearizable.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// `etcdserverpb.RangeResponse`, with what was found.
#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

/// `mvccpb.KeyValue`, without its versions.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

/// `etcdserverpb.StatusRequest`.
#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

/// `etcdserverpb.StatusResponse`, as far as it tells who leads.
#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `etcdserverpb.ResponseHeader`, as far as it tells who answers.
#[derive(Clone, PartialEq, Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

async fn ask<Q, A>(client: &mut Grpc<Channel>, path: &'static str, request: Q) -> Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    client.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let method = PathAndQuery::from_static(path);
    let answer = client
        .unary(tonic::Request::new(request), method, codec)
        .await;
    Ok(answer.context(path)?.into_inner())
}

/// A client that puts or reads.
struct Asking {
    client: Grpc<Channel>,
    value: Option<Vec<u8>>,
}

impl Caller for Asking {
    async fn call(&mut self, number: u64) -> Result<()> {
        let key = resp::key(number).into_bytes();
        match &self.value {
            Some(value) => {
                let value = value.clone();
                let put = PutRequest { key, value };
                ask::<_, PutResponse>(&mut self.client, "/etcdserverpb.KV/Put", put).await?;
            }
            None => {
                let range = RangeRequest { key };
                let answer: RangeResponse =
                    ask(&mut self.client, "/etcdserverpb.KV/Range", range).await?;
                ensure!(answer.kvs.len() == 1, "key {number} is not there");
            }
        }
        Ok(())
    }
}

/// A cluster.
pub(crate) struct Etcd {
    members: Vec<Member>,
    runtime: Runtime,
    /// How many keys are there to be read.
    filled: u64,
    /// How many keys are put.
    keys: u64,
}

struct Member {
    command: Command,
    log: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Etcd {
    /// Starts a cluster of `nodes`.
    ///
    /// # Errors
    ///
    /// One does not answer.
    pub(crate) fn start(setup: &Setup, nodes: u8) -> Result<Self> {
        let ports = (0..nodes)
            .map(|_| Ok((free_port()?, free_port()?)))
            .collect::<Result<Vec<_>>>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster = ports.iter().enumerate();
        let cluster: Vec<String> = cluster
            .map(|(n, (_, peer))| format!("node{n}={}", url(*peer)))
            .collect();
        let mut members = Vec::new();
        for (n, (port, peer)) in ports.iter().copied().enumerate() {
            let dir = setup.dir.join(format!("etcd-{port}"));
            let log = dir.with_extension("log");
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("node{n}")])
                .args(["--listen-client-urls", &url(port)])
                .args(["--advertise-client-urls", &url(port)])
                .args(["--listen-peer-urls", &url(peer)])
                .args(["--initial-advertise-peer-urls", &url(peer)])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-token", &format!("bench-{}", ports[0].0)])
                .args(["--quota-backend-bytes", QUOTA_BYTES])
                .args(["--logger", "zap", "--log-level", "error"])
                .arg("--data-dir")
                .arg(&dir)
                .stdin(Stdio::null());
            members.push(Member {
                command,
                log,
                port,
                process: None,
            });
        }
        let mut etcd = Etcd {
            members,
            runtime: closed_loop::runtime()?,
            filled: 0,
            keys: setup.keys,
        };
        etcd.spawn()?;
        Ok(etcd)
    }

    fn spawn(&mut self) -> Result<()> {
        for member in &mut self.members {
            let log = File::options()
                .create(true)
                .append(true)
                .open(&member.log)?;
            let command = member.command.stdout(log.try_clone()?).stderr(log);
            member.process = Some(Process::start(command)?);
        }
        self.leader().map(drop)
    }

    /// Stops all members and starts them again.
    ///
    /// # Errors
    ///
    /// One does not come back.
    pub(crate) fn restart(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.terminate(STOP_TIME)?;
            }
        }
        self.spawn()
    }

    /// The index of the leader, once every member knows it.
    fn leader(&self) -> Result<usize> {
        until("etcd has a leader", Duration::from_millis(20), || {
            let mut leader = None;
            for (n, member) in self.members.iter().enumerate() {
                let status: StatusResponse = self.runtime.block_on(async {
                    let mut client = Grpc::new(member.endpoint()?.connect().await?);
                    ask(
                        &mut client,
                        "/etcdserverpb.Maintenance/Status",
                        StatusRequest {},
                    )
                    .await
                })?;
                let own = status.header.context("a header")?.member_id;
                if status.leader == 0 {
                    return Ok(None);
                }
                if status.leader == own {
                    leader = Some(n);
                }
            }
            Ok(leader)
        })
    }

    /// Puts keys to be read.
    ///
    /// # Errors
    ///
    /// One was refused.
    pub(crate) fn fill(&mut self, keys: u64) -> Result<()> {
        let leader = self.leader()?;
        self.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            let channels = self.members[leader].channels().await?;
            for n in 0..FILL_CLIENTS {
                let mut client = Asking {
                    client: Grpc::new(channels[n as usize % channels.len()].clone()),
                    value: Some(vec![b'v'; 3]),
                };
                tasks.spawn(async move {
                    for number in (n..keys).step_by(FILL_CLIENTS as usize) {
                        client.call(number).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        })?;
        self.filled = keys;
        Ok(())
    }

    /// Warms up, and finds out how many clients suit it best where `work` has none.
    ///
    /// # Errors
    ///
    /// A call failed.
    pub(crate) fn warm_up(&self, work: &Work, time: Duration) -> Result<(Work, f64)> {
        let tried: &[u32] = match work.clients {
            0 => &CLIENTS_TRIED,
            _ => &[work.clients],
        };
        let mut best: Option<(Work, f64)> = None;
        for clients in tried {
            let clients = *clients;
            let work = Work { clients, ..*work };
            let rate = self.load(&work, time)?.rate();
            if best.is_none_or(|(_, before)| rate > before) {
                best = Some((work, rate));
            }
        }
        best.context("a number of clients")
    }

    /// Runs `work` for `time`; a pipeline has no meaning here.
    ///
    /// # Errors
    ///
    /// A call failed.
    pub(crate) fn load(&self, work: &Work, time: Duration) -> Result<Load> {
        let leader = self.leader()?;
        let at = match work.what {
            What::Set | What::Get => leader,
            What::FollowerGet => (leader + 1) % self.members.len(),
            What::LocalGet => bail!("etcd is read linearizably here"),
        };
        let keys = if work.writes() {
            self.keys
        } else {
            self.filled
        };
        self.runtime.block_on(async {
            let channels = self.members[at].channels().await?;
            let clients = (0..work.clients as usize)
                .map(|n| Asking {
                    client: Grpc::new(channels[n % channels.len()].clone()),
                    value: work.writes().then(|| vec![b'v'; work.value_bytes as usize]),
                })
                .collect();
            Ok(closed_loop::drive(clients, keys, time).await?.load())
        })
    }

    /// The processes of its members.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.members
            .iter()
            .filter_map(|member| Some(member.process.as_ref()?.id()))
            .collect()
    }
}

impl Member {
    fn endpoint(&self) -> Result<Endpoint> {
        Ok(
            Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port))?
                .connect_timeout(Duration::from_secs(5)),
        )
    }

    async fn channels(&self) -> Result<Vec<Channel>> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(self.endpoint()?.connect().await?);
        }
        Ok(channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_etcd() {
        let put = PutRequest {
            key: b"k".to_vec(),
            value: b"vv".to_vec(),
        };
        assert_eq!(put.encode_to_vec(), b"\x0a\x01k\x12\x02vv");
        // A header with a member 5 and a revision 6; one key of the value "v"; a count of 1.
        let range = b"\x0a\x04\x10\x05\x18\x06\x12\x06\x0a\x01k\x2a\x01v\x20\x01";
        let range = RangeResponse::decode(&range[..]).unwrap();
        assert_eq!(range.kvs[0].value, b"v");
        // The same header; a version, a size, a leader 7.
        let status = b"\x0a\x04\x10\x05\x18\x06\x12\x013\x18\x64\x20\x07";
        let status = StatusResponse::decode(&status[..]).unwrap();
        assert_eq!((status.header.unwrap().member_id, status.leader), (5, 7));
    }
}
