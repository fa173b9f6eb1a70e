//! The CRI client: a connection, and calls that are timed.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use podwright::proto::image_service_client::ImageServiceClient;
use podwright::proto::runtime_service_client::RuntimeServiceClient;
use podwright::proto::{
    CgroupDriver, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest,
    RuntimeConfigRequest, VersionRequest,
};
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::error::BenchError;
use crate::samples::Samples;

/// Both CRI services of one runtime, over one connection as kubelet has it.
#[derive(Clone)]
pub struct Client {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

/// Who answers at the endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeIdentity {
    /// The runtime's name for itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it listens.
    pub endpoint: String,
    /// `systemd`, `cgroupfs`, or `unknown` where the runtime does not tell.
    pub cgroup_driver: String,
    /// Process id of the daemon, from the socket's credentials.
    pub pid: Option<i32>,
}

impl Client {
    /// Connects; `timeout` holds for each call.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Self, BenchError> {
        let failed = |error: tonic::transport::Error| BenchError::Connect {
            endpoint: endpoint.to_owned(),
            reason: with_causes(&error),
        };
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .map_err(failed)?
            .timeout(timeout)
            .connect()
            .await
            .map_err(failed)?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) })
    }

    /// Asks the runtime who it is.
    pub async fn identity(&self, endpoint: &str) -> Result<RuntimeIdentity, BenchError> {
        let version = answer("Version", self.runtime.clone().version(VersionRequest::default()).await)?;
        let driver = self
            .runtime
            .clone()
            .runtime_config(RuntimeConfigRequest::default())
            .await
            .ok()
            .and_then(|response| response.into_inner().linux)
            .map(|linux| linux.cgroup_driver());
        Ok(RuntimeIdentity {
            name: version.runtime_name,
            version: version.runtime_version,
            endpoint: endpoint.to_owned(),
            cgroup_driver: match driver {
                Some(CgroupDriver::Systemd) => "systemd",
                Some(CgroupDriver::Cgroupfs) => "cgroupfs",
                None => "unknown",
            }
            .to_owned(),
            pid: daemon_pid(endpoint),
        })
    }

    /// Whether the runtime has the image.
    pub async fn has_image(&self, image: &str) -> Result<bool, BenchError> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(answer("ImageStatus", self.images.clone().image_status(request).await)?.image.is_some())
    }

    /// Pulls the image, timed.
    pub async fn pull(&self, samples: &mut Samples, image: &str, runtime_handler: &str) -> Result<(), BenchError> {
        let image = ImageSpec { runtime_handler: runtime_handler.to_owned(), ..spec(image) };
        let request = PullImageRequest { image: Some(image), ..Default::default() };
        timed(samples, "PullImage", self.images.clone().pull_image(request)).await?;
        Ok(())
    }

    /// Removes the image, timed.
    pub async fn remove_image(&self, samples: &mut Samples, image: &str) -> Result<(), BenchError> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        timed(samples, "RemoveImage", self.images.clone().remove_image(request)).await?;
        Ok(())
    }

    /// Waits until a removed image's files are deleted: asked for its disk usage, a runtime that deletes in the background
    /// takes a moment, in which the file system gets more free inodes. Btrfs counts none; there only the runtime's own
    /// numbers tell, so this can end early for a runtime that counts no longer what it still deletes.
    pub async fn deleted(&self) -> Result<(), BenchError> {
        let mut last = None;
        loop {
            // One that waits for it does so the longer the more time it has.
            let mut request = Request::new(ImageFsInfoRequest {});
            request.set_timeout(Duration::from_secs(60));
            let info = self.images.clone().image_fs_info(request).await;
            let Some(system) = answer("ImageFsInfo", info)?.image_filesystems.into_iter().next() else { return Ok(()) };
            let Some(place) = system.fs_id.map(|id| id.mountpoint) else { return Ok(()) };
            let Ok(found) = rustix::fs::statvfs(place) else { return Ok(()) };
            let now = Some((found.f_ffree, system.used_bytes, system.inodes_used));
            if now == last {
                return Ok(());
            }
            last = now;
        }
    }
}

/// An image by reference.
pub fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

/// Awaits a call and adds its time under the RPC's name, if it succeeded.
pub async fn timed<T>(
    samples: &mut Samples,
    call: &'static str,
    future: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, BenchError> {
    let begun = Instant::now();
    let response = answer(call, future.await)?;
    samples.add(call, begun.elapsed());
    Ok(response)
}

/// The message of a response, or the call's failure.
pub fn answer<T>(call: &'static str, result: Result<Response<T>, Status>) -> Result<T, BenchError> {
    result.map(Response::into_inner).map_err(|status| BenchError::Call {
        call,
        code: status.code(),
        message: status.message().to_owned(),
    })
}

/// The process that listens at the endpoint, or None where the kernel does not tell.
fn daemon_pid(endpoint: &str) -> Option<i32> {
    let stream = UnixStream::connect(endpoint.strip_prefix("unix://")?).ok()?;
    let credentials = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok()?;
    Some(credentials.pid.as_raw_nonzero().get())
}

/// An error with its causes, which tonic's own message leaves out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !told.ends_with(&more) {
            told = format!("{told}: {more}");
        }
        cause = error.source();
    }
    told
}
