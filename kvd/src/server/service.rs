//! The node, as connections meet it.

use std::time::Duration;

use super::Service;
use crate::node::{ConfigLimits, Early, JoinRequest, Node, ReadLevel, Reading, Status, Written};
use crate::raft::entry::Group;
use crate::raft::spool::Spool;
use crate::raft::{Member, NodeId};
use crate::resp::Reply;

impl Service for Node {
    async fn propose(&self, group: Group, early: Option<Early>) -> Result<Written, Reply> {
        Node::propose(self, group, early).await
    }

    async fn read(&self, level: ReadLevel, after: u64) -> Result<Reading, Reply> {
        Node::read(self, level, after).await
    }

    async fn tick(&self) -> Result<(), Reply> {
        Node::tick(self).await
    }

    fn reads_are_fast(&self) -> bool {
        Node::reads_are_fast(self)
    }

    fn leading_runtime(&self) -> Option<tokio::runtime::Handle> {
        Node::leading_runtime(self)
    }

    fn status(&self) -> Status {
        Node::status(self)
    }

    fn redirect(&self) -> Option<Member> {
        Node::redirect(self)
    }

    async fn replicas(&self, index: u64, wanted: u64, patience: Option<Duration>) -> u64 {
        Node::replicas(self, index, wanted, patience).await
    }

    async fn join(&self, request: JoinRequest) -> Reply {
        Node::join(self, request).await
    }

    async fn leave(&self, name: String) -> Reply {
        Node::leave(self, name).await
    }

    async fn transfer(&self, to: Option<NodeId>) -> Reply {
        Node::transfer(self, to).await
    }

    async fn compare(&self) -> Reply {
        Node::compare(self).await
    }

    async fn backup(&self) -> Result<(u64, Spool), Reply> {
        Node::backup(self).await
    }

    async fn leader_known(&self, hold: Duration) -> bool {
        Node::leader_known(self, hold).await
    }

    fn backend_info(&self) -> Vec<(String, String)> {
        Node::backend_info(self)
    }

    fn set_backend_option(&self, option: &str) -> Result<(), String> {
        Node::set_backend_option(self, option)
    }

    fn raft_info(&self) -> Vec<(String, String)> {
        Node::raft_info(self)
    }

    fn shutdown(&self) {
        Node::shutdown(self);
    }

    fn limits(&self) -> ConfigLimits {
        Node::limits(self)
    }
}
