//! Images: when to pull, and who they run as.

use std::time::Instant;

use tokio::sync::mpsc;

use crate::proto;

use super::super::client::Cri;
use super::super::manifest::{Container, PullPolicy};
use super::super::translate::ImageUser;
use super::{Report, WorkerError};

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The runtime's name for it.
    pub reference: String,
    /// Who it runs as.
    pub user: ImageUser,
}

/// The policy of a container: if it gives none, that depends on the tag.
pub fn pull_policy(container: &Container) -> PullPolicy {
    container.image_pull_policy.unwrap_or_else(|| {
        let image = &container.image;
        if image.contains('@') {
            return PullPolicy::IfNotPresent;
        }
        // A colon before the last slash belongs to the registry's port.
        let name = image.rsplit('/').next().unwrap_or(image);
        match name.split_once(':') {
            None | Some((_, "latest")) => PullPolicy::Always,
            Some(_) => PullPolicy::IfNotPresent,
        }
    })
}

/// Makes sure that an image is there.
pub(super) async fn ensure(
    cri: &Cri,
    image: &str,
    policy: PullPolicy,
    handler: &str,
    sandbox: &proto::PodSandboxConfig,
    reports: &mpsc::Sender<Report>,
) -> Result<Image, WorkerError> {
    let spec = proto::ImageSpec { image: image.to_owned(), runtime_handler: handler.to_owned(), ..Default::default() };
    let fail = |source| WorkerError::Pull { image: image.to_owned(), source };
    let status =
        |spec: proto::ImageSpec| cri.image_status(proto::ImageStatusRequest { image: Some(spec), verbose: false });
    if policy != PullPolicy::Always {
        match status(spec.clone()).await.map_err(fail)?.image {
            Some(found) => return Ok(describe(found)),
            None if policy == PullPolicy::Never => return Err(WorkerError::NoImage { image: image.to_owned() }),
            None => {}
        }
    }
    let _ = reports.send(Report::Pulling(image.to_owned())).await;
    let began = Instant::now();
    let request =
        proto::PullImageRequest { image: Some(spec.clone()), auth: None, sandbox_config: Some(sandbox.clone()) };
    let reference = cri.pull_image(request).await.map_err(fail)?.image_ref;
    let _ = reports.send(Report::Pulled(image.to_owned(), began.elapsed())).await;
    let pulled = proto::ImageSpec { image: reference.clone(), ..spec };
    match status(pulled).await.map_err(fail)?.image {
        Some(found) => Ok(describe(found)),
        None => Ok(Image { reference, user: ImageUser::default() }),
    }
}

fn describe(image: proto::Image) -> Image {
    let user = ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username };
    Image { reference: image.id, user }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::manifest::parse;

    #[test]
    fn the_tag_decides_when_nothing_else_does() {
        for (image, want) in [
            ("busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("localhost:5000/busybox", PullPolicy::Always),
            ("localhost:5000/busybox:1", PullPolicy::IfNotPresent),
            ("a/b:1@sha256:00", PullPolicy::IfNotPresent),
            ("a/b@sha256:00", PullPolicy::IfNotPresent),
        ] {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: '{image}'}}]}}"
            );
            let manifest = parse(&text, "f").unwrap();
            assert_eq!(pull_policy(&manifest.pods[0].pod.spec.containers[0]), want, "{image}");
        }
    }
}
