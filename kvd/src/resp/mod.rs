//! placeholder
pub mod reply;
pub use reply::Reply;
