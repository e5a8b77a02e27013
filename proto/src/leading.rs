//! How a scheduler that does not lead says so, and who does.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The metadata that only such an answer has: where the leader listens, or nothing where that is not known.
const LEADER_KEY: &str = "muster-leader";

/// The answer of a scheduler that does not lead, to a request that only a leader carries out; `leader` is where the one
/// that does listens, as `HOST:PORT`.
pub fn not_leading(leader: Option<&str>) -> Status {
    let known = leader.filter(|leader| !leader.is_empty());
    // What cannot be metadata is no address that anybody could go to.
    let value = known.and_then(|leader| MetadataValue::try_from(leader).ok());
    let mut status = match known {
        Some(leader) => {
            Status::unavailable(format!("this scheduler does not lead, the one at {leader} does"))
        }
        None => Status::unavailable("this scheduler does not lead, and knows of none that does"),
    };
    status.metadata_mut().insert(LEADER_KEY, value.unwrap_or(MetadataValue::from_static("")));
    status
}

/// Whether it is that answer: nothing was done, and another scheduler is to be asked.
pub fn is_not_leading(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.metadata().contains_key(LEADER_KEY)
}

/// Who leads, by that answer: `HOST:PORT`, as that scheduler advertises it. It is for the reader to check.
pub fn leader_of(status: &Status) -> Option<String> {
    let leader = status.metadata().get(LEADER_KEY).filter(|_| is_not_leading(status))?.to_str().ok()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it comes out of the other end of a connection.
    fn over_the_wire(status: &Status) -> Status {
        let mut headers = status.metadata().clone().into_headers();
        status.add_header(&mut headers).expect("headers");
        Status::from_header_map(&headers).expect("a status")
    }

    #[test]
    fn who_leads_is_told() {
        let status = over_the_wire(&not_leading(Some("198.18.0.21:7400")));
        assert!(is_not_leading(&status));
        assert_eq!(leader_of(&status).as_deref(), Some("198.18.0.21:7400"));
        assert_eq!(status.message(), "this scheduler does not lead, the one at 198.18.0.21:7400 does");
        let status = over_the_wire(&not_leading(Some("[::1]:7400")));
        assert_eq!(leader_of(&status).as_deref(), Some("[::1]:7400"));
    }

    #[test]
    fn nobody_may_be_known_to_lead() {
        for unknown in [None, Some(""), Some("a\nb:1")] {
            let status = over_the_wire(&not_leading(unknown));
            assert!(is_not_leading(&status), "{unknown:?}");
            assert_eq!(leader_of(&status), None, "{unknown:?}");
        }
    }

    #[test]
    fn other_answers_are_other_answers() {
        let mut other = Status::aborted("the store is full");
        for status in [Status::unavailable("this scheduler is stopping"), other.clone()] {
            assert!(!is_not_leading(&status));
            assert_eq!(leader_of(&status), None);
        }
        other.metadata_mut().insert(LEADER_KEY, MetadataValue::from_static("198.18.0.21:7400"));
        assert_eq!((is_not_leading(&other), leader_of(&other)), (false, None));
    }
}
