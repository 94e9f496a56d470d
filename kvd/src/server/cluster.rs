//! What cluster clients and tools are told: one shard of all slots, its primary the leader.

use sha2::{Digest as _, Sha256};

use crate::command::effect::Cluster;
use crate::hex;
use crate::node::{MemberStatus, Role, Status};
use crate::resp::Reply;

/// The name of a node towards clients: 40 hex digits.
fn node_name(cluster: u128, node: u64) -> String {
    let mut digest = Sha256::new();
    digest.update(cluster.to_le_bytes());
    digest.update(node.to_le_bytes());
    hex::text(&digest.finalize()[..20])
}

fn host_port(addr: &str) -> (String, i64) {
    let (host, port) = addr.rsplit_once(':').unwrap_or((addr, "0"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host.to_owned(), port.parse().unwrap_or(0))
}

/// Members with the leader first.
fn members(status: &Status) -> Vec<&MemberStatus> {
    let mut members: Vec<_> = status.members.iter().collect();
    members.sort_by_key(|member| (!member.leader, member.id));
    members
}

pub(super) fn reply(what: &Cluster, status: &Status, wall_ms: u64) -> Reply {
    match what {
        Cluster::MyId => Reply::bulk(node_name(status.cluster, status.id)),
        Cluster::Slots => slots(status),
        Cluster::Shards => shards(status),
        Cluster::Nodes => Reply::text(nodes(status)),
        Cluster::Info => Reply::text(info(status)),
        Cluster::Links => links(status, wall_ms),
        Cluster::Replicas(of) => replicas(status, of),
    }
}

fn links(status: &Status, wall_ms: u64) -> Reply {
    let text = |text: &str| Reply::bulk_from(text);
    let links = status.members.iter().filter_map(|member| {
        let since_ms = wall_ms.saturating_sub(member.connected_ms?);
        Some(Reply::Map(vec![
            (text("direction"), text("to")),
            (
                text("node"),
                Reply::bulk(node_name(status.cluster, member.id)),
            ),
            (text("create-time"), Reply::Int(since_ms as i64)),
            (text("events"), text("rw")),
            (text("send-buffer-allocated"), Reply::Int(0)),
            (text("send-buffer-used"), Reply::Int(0)),
        ]))
    });
    Reply::Array(links.collect())
}

/// The lines of NODES that name `of` as their primary.
fn replicas(status: &Status, of: &str) -> Reply {
    let wanted = |member: &&MemberStatus| node_name(status.cluster, member.id) == of;
    let Some(member) = status.members.iter().find(wanted) else {
        return Reply::error(format!("ERR Unknown node {of}"));
    };
    if !member.leader {
        return Reply::error("ERR The specified node is not a master");
    }
    let lines = nodes(status);
    let lines = lines.lines().filter(|line| !line.starts_with(of));
    Reply::Array(lines.map(Reply::bulk_from).collect())
}

fn slots(status: &Status) -> Reply {
    let nodes = members(status).into_iter().map(|member| {
        let (host, port) = host_port(&member.member.client_addr);
        Reply::Array(vec![
            Reply::bulk(host),
            Reply::Int(port),
            Reply::bulk(node_name(status.cluster, member.id)),
            Reply::Map(Vec::new()),
        ])
    });
    let mut shard = vec![Reply::Int(0), Reply::Int(16383)];
    shard.extend(nodes);
    Reply::Array(vec![Reply::Array(shard)])
}

fn shards(status: &Status) -> Reply {
    let text = |text: &str| Reply::bulk_from(text);
    let nodes = members(status).into_iter().map(|member| {
        let (host, port) = host_port(&member.member.client_addr);
        Reply::Map(vec![
            (
                text("id"),
                Reply::bulk(node_name(status.cluster, member.id)),
            ),
            (text("port"), Reply::Int(port)),
            (text("ip"), text(&host)),
            (text("endpoint"), text(&host)),
            (
                text("role"),
                text(if member.leader { "master" } else { "replica" }),
            ),
            (
                text("replication-offset"),
                Reply::Int(member.matched.unwrap_or(status.committed) as i64),
            ),
            (text("health"), text("online")),
        ])
    });
    Reply::Array(vec![Reply::Map(vec![
        (
            text("slots"),
            Reply::Array(vec![Reply::Int(0), Reply::Int(16383)]),
        ),
        (text("nodes"), Reply::Array(nodes.collect())),
    ])])
}

fn nodes(status: &Status) -> String {
    let primary = status.members.iter().find(|member| member.leader);
    let primary = primary.map_or("-".to_owned(), |member| {
        node_name(status.cluster, member.id)
    });
    let line = |member: &MemberStatus| {
        let (host, port) = host_port(&member.member.client_addr);
        let (_, raft_port) = host_port(&member.member.raft_addr);
        let myself = if member.id == status.id {
            "myself,"
        } else {
            ""
        };
        let (flag, of, slots) = match member.leader {
            true => ("master", "-", " 0-16383"),
            false => ("slave", primary.as_str(), ""),
        };
        format!(
            "{} {host}:{port}@{raft_port} {myself}{flag} {of} 0 0 {} connected{slots}\n",
            node_name(status.cluster, member.id),
            status.term,
        )
    };
    members(status).into_iter().map(line).collect()
}

fn info(status: &Status) -> String {
    let ok = status.leader.is_some();
    let slots = if ok { 16384 } else { 0 };
    format!(
        "cluster_enabled:1\r\ncluster_state:{}\r\ncluster_slots_assigned:16384\r\n\
         cluster_slots_ok:{slots}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
         cluster_known_nodes:{}\r\ncluster_size:1\r\ncluster_current_epoch:{}\r\n\
         cluster_my_epoch:{}\r\n",
        if ok { "ok" } else { "fail" },
        status.members.len(),
        status.term,
        status.term,
    )
}

/// ROLE.
pub(super) fn role(status: &Status) -> Reply {
    let text = |text: &str| Reply::bulk_from(text);
    if status.role == Role::Leader {
        let others = status
            .members
            .iter()
            .filter(|member| !member.leader)
            .map(|member| {
                let (host, port) = host_port(&member.member.client_addr);
                let offset = member.matched.unwrap_or(0);
                Reply::Array(vec![
                    text(&host),
                    Reply::bulk(port.to_string()),
                    Reply::bulk(offset.to_string()),
                ])
            });
        return Reply::Array(vec![
            text("master"),
            Reply::Int(status.committed as i64),
            Reply::Array(others.collect()),
        ]);
    }
    let leader = status.members.iter().find(|member| member.leader);
    let (host, port) = leader.map_or((String::new(), 0), |leader| {
        host_port(&leader.member.client_addr)
    });
    Reply::Array(vec![
        text("slave"),
        text(&host),
        Reply::Int(port),
        text(if leader.is_some() {
            "connected"
        } else {
            "connect"
        }),
        Reply::Int(status.applied as i64),
    ])
}

/// The replicas as INFO lists them, and the leader's address.
pub(super) fn replication(status: &Status) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
    if status.role == Role::Leader {
        line("role", "master".to_owned());
        let others: Vec<_> = status
            .members
            .iter()
            .filter(|member| !member.leader)
            .collect();
        line("connected_slaves", others.len().to_string());
        for (n, member) in others.iter().enumerate() {
            let (host, port) = host_port(&member.member.client_addr);
            let lag = member.heard_ms.map_or(0, |ms| ms / 1000);
            let offset = member.matched.unwrap_or(0);
            let text = format!("ip={host},port={port},state=online,offset={offset},lag={lag}");
            line(&format!("slave{n}"), text);
        }
    } else {
        line("role", "slave".to_owned());
        if let Some(leader) = status.members.iter().find(|member| member.leader) {
            let (host, port) = host_port(&leader.member.client_addr);
            line("master_host", host);
            line("master_port", port.to_string());
        }
        let up = if status.leader.is_some() {
            "up"
        } else {
            "down"
        };
        line("master_link_status", up.to_owned());
        line("connected_slaves", "0".to_owned());
    }
    line("master_repl_offset", status.committed.to_string());
    lines
}
