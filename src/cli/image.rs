//! `podwright image ls|pull|rm`: a small client of the daemon's (or any) CRI socket.

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use tonic::transport::{Channel, Endpoint};

use super::{Failure, Outcome, complain, print};
use crate::config;
use crate::kubelet;
use crate::proto;
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;

/// Largest answer taken, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Images of a running daemon.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// CRI socket: a path or unix:///PATH.
    #[arg(long, value_name = "ENDPOINT", global = true, env = "CONTAINER_RUNTIME_ENDPOINT")]
    runtime_endpoint: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List images.
    Ls {
        /// Only the one of this name or id.
        name: Option<String>,
    },
    /// Pull images.
    Pull {
        /// References.
        #[arg(required = true)]
        references: Vec<String>,
        /// USER:PASSWORD for the registry; better given in the environment, where ps does not show it.
        #[arg(long, env = "PODWRIGHT_CREDS", hide_env_values = true)]
        creds: Option<String>,
    },
    /// Remove images with all their names. Containers that use one keep its files.
    Rm {
        /// References or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Does it.
pub fn run(args: Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = connect(args.runtime_endpoint.as_deref()).await?;
        match args.command {
            Command::Ls { name } => list(&mut client, name).await?,
            Command::Pull { references, creds } => pull(&mut client, references, creds).await?,
            Command::Rm { names } => return remove(&mut client, names).await,
        }
        Ok(ExitCode::SUCCESS)
    })
}

struct Client {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
    /// Path of the socket, for messages.
    socket: String,
}

impl Client {
    /// A status without the parts that are for programs.
    fn told(&self) -> impl Fn(tonic::Status) -> Failure {
        let socket = self.socket.clone();
        move |status| format!("{} ({:?})", kubelet::client::explain(&status, &socket), status.code()).into()
    }
}

async fn connect(endpoint: Option<&str>) -> Result<Client, Failure> {
    let path = match endpoint {
        Some(endpoint) => endpoint.strip_prefix("unix://").unwrap_or(endpoint).to_owned(),
        None => config::load(None)?.server.address.to_string_lossy().into_owned(),
    };
    if !Path::new(&path).is_absolute() {
        return Err(format!("{path:?} is no endpoint: want an absolute path or unix:///PATH").into());
    }
    let channel = Endpoint::from_shared(format!("unix://{path}"))?
        .connect()
        .await
        .map_err(|error| format!("no CRI server at {path:?}: {}", crate::types::chain(&error)))?;
    Ok(Client {
        images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
        runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        socket: path,
    })
}

fn spec(image: String) -> Option<proto::ImageSpec> {
    Some(proto::ImageSpec { image, ..Default::default() })
}

async fn list(client: &mut Client, name: Option<String>) -> Result<(), Failure> {
    let filter = name.map(|name| proto::ImageFilter { image: spec(name) });
    let answer = client.images.list_images(proto::ListImagesRequest { filter }).await.map_err(client.told())?;
    let images = answer.into_inner().images;
    let mut rows = vec![["IMAGE".to_owned(), "TAG".into(), "IMAGE ID".into(), "SIZE".into()]];
    for image in &images {
        rows.extend(rows_of(image));
    }
    print(&table(&rows))
}

async fn pull(client: &mut Client, references: Vec<String>, creds: Option<String>) -> Result<(), Failure> {
    let auth = match creds.as_deref().map(|creds| creds.split_once(':')) {
        None => None,
        Some(None) => return Err("credentials: want USER:PASSWORD".into()),
        Some(Some((username, password))) => {
            Some(proto::AuthConfig { username: username.into(), password: password.into(), ..Default::default() })
        }
    };
    for reference in references {
        let request = proto::PullImageRequest { image: spec(reference), auth: auth.clone(), sandbox_config: None };
        let id = client.images.pull_image(request).await.map_err(client.told())?.into_inner().image_ref;
        print(&format!("{id}\n"))?;
    }
    Ok(())
}

/// The runtime answers the removal of what it does not have as that of what it has: it is asked before and after.
/// Two names may be of one image, whose removal takes both.
async fn remove(client: &mut Client, names: Vec<String>) -> Outcome {
    let mut meant = Vec::new();
    for name in &names {
        // A failure is told when its turn comes.
        meant.push(status(client, name).await.ok().flatten().map(|image| image.id));
    }
    let mut gone = HashSet::new();
    let mut code = ExitCode::SUCCESS;
    for (name, meant) in names.iter().zip(meant) {
        match remove_one(client, name).await {
            Ok(Some((image, users))) => {
                print(&removed(&image, users))?;
                gone.insert(image.id);
            }
            Ok(None) if meant.is_some_and(|id| gone.contains(&id)) => {}
            Ok(None) => code = complain(&format!("there is no image {name:?}")),
            Err(failure) => code = complain(&format!("cannot remove image {name:?}: {failure}")),
        }
    }
    Ok(code)
}

/// The image, and how many containers use it; `None`: there is none.
async fn remove_one(client: &mut Client, name: &str) -> Result<Option<(proto::Image, usize)>, Failure> {
    let found = status(client, name).await?;
    let users = match &found {
        Some(image) => users(client, image).await,
        None => 0,
    };
    // Also if it was not found: the runtime may know why, and say it.
    let request = proto::RemoveImageRequest { image: spec(name.to_owned()) };
    client.images.remove_image(request).await.map_err(client.told())?;
    match found {
        Some(image) if status(client, &image.id).await?.is_some() => Err("the runtime does not say why".into()),
        found => Ok(found.map(|image| (image, users))),
    }
}

async fn status(client: &mut Client, name: &str) -> Result<Option<proto::Image>, Failure> {
    let request = proto::ImageStatusRequest { image: spec(name.to_owned()), verbose: false };
    Ok(client.images.image_status(request).await.map_err(client.told())?.into_inner().image)
}

/// How many containers are made of an image. One that cannot tell does not matter here.
async fn users(client: &mut Client, image: &proto::Image) -> usize {
    let answer = client.runtime.list_containers(proto::ListContainersRequest { filter: None }).await;
    let containers = answer.map(|answer| answer.into_inner().containers).unwrap_or_default();
    containers.iter().filter(|container| container.image_id == image.id || container.image_ref == image.id).count()
}

fn removed(image: &proto::Image, users: usize) -> String {
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    let names = if names.is_empty() { image.id.clone() } else { names.join(", ") };
    match users {
        0 => format!("removed {names}\n"),
        1 => format!("removed {names}; its files stay until the container that uses it is removed\n"),
        more => format!("removed {names}; its files stay until the {more} containers that use it are removed\n"),
    }
}

/// One row for each tag; an image without tags is named by its digest.
fn rows_of(image: &proto::Image) -> Vec<[String; 4]> {
    let id: String = image.id.strip_prefix("sha256:").unwrap_or(&image.id).chars().take(13).collect();
    let row = |name: &str, tag: &str| [name.to_owned(), tag.to_owned(), id.clone(), size(image.size)];
    if image.repo_tags.is_empty() {
        let name = image.repo_digests.first().and_then(|digest| digest.split('@').next());
        return vec![row(name.unwrap_or("<none>"), "<none>")];
    }
    image
        .repo_tags
        .iter()
        .map(|tag| tag.rsplit_once(':').unwrap_or((tag, "")))
        .map(|(name, tag)| row(name, tag))
        .collect()
}

/// Bytes with three digits: `1.53MB`.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter().peekable();
    while let Some(unit) = units.next() {
        if value < 999.5 || units.peek().is_none() {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    bytes.to_string()
}

fn table(rows: &[[String; 4]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |[name, tag, id, size]: &[String; 4]| {
        format!("{name:<0$}  {tag:<1$}  {id:<2$}  {size}\n", widths[0], widths[1], widths[2])
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, want) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1.00kB"),
            (1_530_000, "1.53MB"),
            (99_960_000, "100MB"),
            (999_600, "1.00MB"),
            (497_000_000, "497MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn a_removal_tells_of_users() {
        let image =
            proto::Image { id: "sha256:ab".into(), repo_tags: vec!["a:1".into(), "a:2".into()], ..Default::default() };
        assert_eq!(removed(&image, 0), "removed a:1, a:2\n");
        assert!(removed(&image, 2).ends_with("until the 2 containers that use it are removed\n"));
        let bare = proto::Image { repo_tags: Vec::new(), ..image };
        assert_eq!(removed(&bare, 0), "removed sha256:ab\n");
    }

    #[test]
    fn a_row_for_each_tag() {
        let image = proto::Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: vec!["localhost:5000/a:1".into(), "docker.io/library/a:latest".into()],
            ..Default::default()
        };
        let rows = rows_of(&image);
        assert_eq!(rows[0][..3], ["localhost:5000/a", "1", "ababababababa"]);
        assert_eq!(rows[1][..2], ["docker.io/library/a", "latest"]);
    }
}
