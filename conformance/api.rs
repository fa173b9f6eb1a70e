//! The API as a whole: versions, status, what is not there yet.

use podwright::proto::*;
use tonic::Code;

use crate::harness::Node;

#[tokio::test]
async fn version_names_the_runtime() {
    let node = Node::start().await;
    let version = node.version().await.unwrap();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "podwright"));
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    node.finish().await;
}
