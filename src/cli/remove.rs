//! `podwright rm`: away with the pods that `podwright run` left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crate::kubelet::client::Cri;
use crate::kubelet::remove::{Options, Wanted, remove};
use crate::proto;
use crate::types::chain;

use super::{complain, print, run};

/// Stop and remove pods that `podwright run` left
///
/// Each pod is stopped with the grace period of its manifest; its sandbox, containers, volumes and logs are removed,
/// and of a pod that was removed on the runtime already, what is left. Host paths are left alone. All pods of a name
/// go, should it have been run more than once. Pods of podwright kubelet or of other clients are refused.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods: NAME (of namespace default), NAMESPACE/NAME, a uid, or the manifest they were run from: a path that
    /// begins with / or . or ends in .yaml, .yml or .json; - for stdin
    #[arg(value_name = "POD|FILE", required = true)]
    pub pods: Vec<String>,
    /// Overrules the pods' own grace periods; 0 kills
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<u32>,
    /// CRI socket of the runtime
    #[arg(long, env = "CONTAINER_RUNTIME_ENDPOINT", default_value = "unix:///run/podwright/podwright.sock")]
    pub runtime_endpoint: String,
    /// Folder for volumes that run was given
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs the command. Prints what was removed; errors, too, and goes on past them.
pub async fn run(args: Args) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let cri = match connect(&args.runtime_endpoint).await {
        Ok(cri) => cri,
        Err(text) => return complain(&text),
    };
    let dirs = Arc::new(run::dirs(args.root.as_deref()));
    let options = Options { endpoint: args.runtime_endpoint, dirs, grace: args.grace_period };
    for text in &args.pods {
        let wanted = match wanted(text) {
            Ok(wanted) => wanted,
            Err(text) => {
                code = complain(&text);
                continue;
            }
        };
        for wanted in wanted {
            let results = remove(&cri, &options, &wanted).await.unwrap_or_else(|error| vec![Err(error)]);
            for result in results {
                match result {
                    // A reader that left is no reason to leave pods.
                    Ok(pod) => drop(print(&format!("{}/{} {}\n", pod.namespace, pod.name, pod.uid))),
                    Err(error) => code = complain(&chain(&error)),
                }
            }
        }
    }
    code
}

async fn connect(endpoint: &str) -> Result<Cri, String> {
    let cri = Cri::new(endpoint, endpoint).map_err(|error| chain(&error))?;
    let version = cri.version(proto::VersionRequest { version: "v1".to_owned() }).await;
    version.map_err(|error| format!("runtime endpoint {endpoint}: {}", chain(&error)))?;
    Ok(cri)
}

/// What an argument stands for.
fn wanted(text: &str) -> Result<Vec<Wanted>, String> {
    if !is_file(text) {
        return Ok(vec![Wanted::parse(text)]);
    }
    let manifest = run::read(Path::new(text))?;
    if manifest.pods.is_empty() {
        return Err(format!("{text}: there is no pod in it"));
    }
    let pods = manifest.pods.into_iter().map(|document| document.pod.metadata);
    let uid = |uid: String| Some(uid).filter(|uid| !uid.is_empty());
    Ok(pods.map(|pod| Wanted { namespace: pod.namespace, name: pod.name, uid: uid(pod.uid) }).collect())
}

fn is_file(text: &str) -> bool {
    let ends = [".yaml", ".yml", ".json"].iter().any(|end| text.ends_with(end));
    text == "-" || text.starts_with(['/', '.']) || ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_names_are_told_apart() {
        for file in ["-", "pod.yaml", "a/pod.yml", "./pod", "/tmp/pod", "x.json", "../x"] {
            assert!(is_file(file), "{file}");
        }
        for name in ["web", "default/web", "kube-system/a.b", "0b1c2d3e-0000-4000-8000-000000000000"] {
            assert!(!is_file(name), "{name}");
        }
        assert!(wanted("/no/such/pod.yaml").unwrap_err().contains("/no/such/pod.yaml"));
    }
}
