//! What lies where in etcd.
//!
//! | key below the prefix | value |
//! | --- | --- |
//! | `format` | the version of all this |
//! | `cluster` | the cluster's id |
//! | `term` | the last term that was taken |
//! | `leader` | who leads, as JSON; hangs on its lease, and its creation's revision guards each write |
//! | `log/N` | entry N of the log: a batch of changes, or a part of one |
//! | `snapshot` | from which entry the log goes on, and where what was before it is, as JSON |
//! | `snapshots/N/K` | part K of the state as of entry N or later |
//! | `doubt` | is there where the state may be older than what was decided: after a restore, for a while |
//! | `formerly` | the id of the empty cluster in whose place a backup was restored |
//! | `schedulers/ID` | a scheduler that runs, as JSON; hangs on its lease |

use muster_etcd::pb;

/// The keys below a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.prefix).into_bytes()
    }

    pub(crate) fn format(&self) -> Vec<u8> {
        self.key("format")
    }

    pub(crate) fn cluster(&self) -> Vec<u8> {
        self.key("cluster")
    }

    pub(crate) fn term(&self) -> Vec<u8> {
        self.key("term")
    }

    pub(crate) fn leader(&self) -> Vec<u8> {
        self.key("leader")
    }

    pub(crate) fn doubt(&self) -> Vec<u8> {
        self.key("doubt")
    }

    pub(crate) fn formerly(&self) -> Vec<u8> {
        self.key("formerly")
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.key("snapshot")
    }

    /// Entry `number` of the log. Numbers have all their digits, so that keys sort as numbers do.
    pub(crate) fn entry(&self, number: u64) -> Vec<u8> {
        self.key(&format!("log/{number:016x}"))
    }

    /// The number of an entry, of its key.
    pub(crate) fn number(&self, key: &[u8]) -> Option<u64> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix("log/")?;
        u64::from_str_radix(name, 16).ok()
    }

    /// The entries after this one.
    pub(crate) fn entries_after(&self, number: u64) -> pb::RangeRequest {
        between(self.entry(number.saturating_add(1)), self.entries_end())
    }

    /// The first key that is no entry: `0` comes after `/`.
    pub(crate) fn entries_end(&self) -> Vec<u8> {
        self.key("log0")
    }

    pub(crate) fn snapshot_part(&self, of: u64, part: u64) -> Vec<u8> {
        self.key(&format!("snapshots/{of:016x}/{part:016x}"))
    }

    /// The parts of the snapshot as of this entry.
    pub(crate) fn snapshot_parts(&self, of: u64) -> pb::RangeRequest {
        between(self.snapshot_part(of, 0), self.key(&format!("snapshots/{of:016x}0")))
    }

    pub(crate) fn scheduler(&self, id: &str) -> Vec<u8> {
        self.key(&format!("schedulers/{id}"))
    }

    pub(crate) fn schedulers(&self) -> pb::RangeRequest {
        between(self.key("schedulers/"), self.key("schedulers0"))
    }

    /// All keys below the prefix.
    pub(crate) fn all(&self) -> pb::RangeRequest {
        let mut end = self.prefix.clone().into_bytes();
        // It ends in "/", after which comes "0".
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        between(self.prefix.clone().into_bytes(), end)
    }
}

fn between(key: Vec<u8>, end: Vec<u8>) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

/// The operations that transactions are made of.
pub(crate) mod op {
    use muster_etcd::pb::compare::{CompareResult, CompareTarget, TargetUnion};
    use muster_etcd::pb::request_op::Request;
    use muster_etcd::pb::{self, RequestOp};

    pub(crate) fn get(key: Vec<u8>) -> RequestOp {
        let request = pb::RangeRequest { key: key.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestRange(request)) }
    }

    pub(crate) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
        let request = pb::PutRequest { key: key.into(), value: value.into(), lease };
        RequestOp { request: Some(Request::RequestPut(request)) }
    }

    pub(crate) fn delete(key: Vec<u8>, end: Vec<u8>) -> RequestOp {
        let request = pb::DeleteRangeRequest { key: key.into(), range_end: end.into() };
        RequestOp { request: Some(Request::RequestDeleteRange(request)) }
    }

    /// The key was made at this revision; 0: there is none.
    pub(crate) fn made_at(key: Vec<u8>, revision: i64) -> pb::Compare {
        pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.into(),
            target_union: Some(TargetUnion::CreateRevision(revision)),
        }
    }

    /// The key is there.
    pub(crate) fn exists(key: Vec<u8>) -> pb::Compare {
        pb::Compare { result: CompareResult::Greater.into(), ..made_at(key, 0) }
    }

    /// The key was changed last at this revision; 0: there is none.
    pub(crate) fn changed_at(key: Vec<u8>, revision: i64) -> pb::Compare {
        pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.into(),
            target_union: Some(TargetUnion::ModRevision(revision)),
        }
    }

    /// What the operations of a transaction have read, in their order.
    pub(crate) fn values(response: pb::TxnResponse) -> Vec<Option<pb::KeyValue>> {
        let read = response.responses.into_iter().filter_map(|answer| match answer.response {
            Some(pb::response_op::Response::ResponseRange(range)) => Some(range),
            _ => None,
        });
        read.map(|mut range| if range.kvs.is_empty() { None } else { Some(range.kvs.swap_remove(0)) })
            .collect()
    }
}
