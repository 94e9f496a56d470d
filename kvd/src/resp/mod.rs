//! placeholder
/// placeholder
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Reply {
    /// x
    #[default]
    Ok,
}
