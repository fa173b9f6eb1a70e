//! ImageFsInfo.

use std::time::Duration;

use crate::cri::Services;
use crate::proto::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};

/// What images take. Writable layers lie on the same file system, so that both lists name it.
/// Answers when removed images are deleted, after `patience` at the latest.
pub async fn image_fs_info(services: &Services, patience: Duration) -> ImageFsInfoResponse {
    services.images.deleted(patience).await;
    let info = services.images.fs_info();
    let usage = FilesystemUsage {
        timestamp: info.timestamp_ns,
        fs_id: Some(FilesystemIdentifier { mountpoint: info.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: info.used_bytes }),
        inodes_used: Some(UInt64Value { value: info.inodes_used }),
    };
    ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }
}
