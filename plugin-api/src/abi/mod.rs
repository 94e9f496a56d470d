//! The frozen interfaces, one module for each. A released one never changes: what grows, grows
//! through strings, open codes and `ext`, or in a new module beside it.

#[cfg(feature = "host")]
pub mod c;
pub mod v1;
