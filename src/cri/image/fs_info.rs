//! ImageFsInfo.

use tonic::Status;

use crate::cri::Services;
use crate::cri::status::status;
use crate::proto::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};

/// What images take. Writable layers lie on the same file system, so that both lists name it.
pub async fn image_fs_info(services: &Services) -> Result<ImageFsInfoResponse, Status> {
    let info = services.images.fs_info().await.map_err(status)?;
    let usage = FilesystemUsage {
        timestamp: info.timestamp_ns,
        fs_id: Some(FilesystemIdentifier { mountpoint: info.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: info.used_bytes }),
        inodes_used: Some(UInt64Value { value: info.inodes_used }),
    };
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
