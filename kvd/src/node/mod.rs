//! One running member: owns the components; proposes, reads, changes membership, shuts down.
//!
//! This is all that `server` knows of agreement.

mod types;

pub use types::{
    ConfigLimits, JoinRequest, MemberStatus, ReadLevel, Reading, RedirectMode, Role, Status,
    Written,
};
