//! Network namespaces and CNI: a pod's config in, its addresses out.
//!
//! ```text
//! attach:  record (adding) -> ADD of each plugin, its result recorded -> record (added) -> addresses
//!             on a failure: detach
//! detach:  record -> [kill a plugin of an earlier daemon] -> DEL, last plugin first -> record removed
//! ```
//!
//! Architecture Invariant: DEL needs the record only. Neither a changed configuration, a restart nor a reboot
//! between ADD and DEL loses what DEL must be given; and no ADD runs that no record tells of.

mod bridge;
mod cni;
mod error;
mod expedite;
mod inspect;
mod published;
mod quantity;
mod record;
mod request;
mod sysctl;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokio::runtime::Handle;
use tokio::sync::{RwLock, watch as channel};
use tokio::task::AbortHandle;

use crate::store::StoreError;
use crate::sys::netns;
use crate::sys::watch::Watch;
use crate::types::pod::Dns;
use crate::types::{PodId, chain};
use cni::chain::{Chain, NoJournal};
use cni::exec::{Parameters, Runner};
use expedite::Expedite;
use published::Published;
use record::{Attached, Ledger, Page, Record, blocking};

pub use cni::result::{Address, Interface};
pub use error::{NetworkError, PluginFailure, Verb};
pub use inspect::{InspectedNetwork, Inspection, inspect};
pub use request::{Attach, Dirs, EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, IPS, MAC};

/// How long after a watch is lost another one is tried.
const WATCH_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });

/// Where networks are configured, and the bounds on plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Folder of network configurations; need not exist. Absolute.
    pub conf_dir: PathBuf,
    /// Folders of plugins, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// How many configurations a pod is attached to: the first valid ones by file name, as `eth0`, `eth1`, ….
    pub max_conf_files: usize,
    /// Time that one call of a plugin may take.
    pub plugin_timeout: Duration,
    /// Grace periods of the kernel may be shortened during DEL.
    pub expedite: bool,
    /// File that notes that they are, for the next daemon.
    pub expedited: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_files: 1,
            plugin_timeout: Duration::from_secs(120),
            expedite: false,
            expedited: "/run/podwright/rcu-expedited".into(),
        }
    }
}

/// What an attach gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Addresses of the pod, the primary one first: those of `eth0` in the plugins' order.
    pub ips: Vec<IpAddr>,
    /// The pod's interfaces with their addresses, `eth0` first.
    pub interfaces: Vec<PodInterface>,
    /// Resolver settings that the network suggests.
    pub dns: Option<Dns>,
    /// The results as the last plugin of each network printed them, for people.
    pub results: Vec<serde_json::Value>,
}

/// An interface inside the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInterface {
    /// Its name.
    pub name: String,
    /// The network it leads to.
    pub network: String,
    /// Its hardware address; empty: not told.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

/// The node's pod networks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    runner: Runner,
    /// The configurations; told anew when they, or the plugins' STATUS, change.
    published: channel::Sender<Arc<Published>>,
    /// GC must run alone: it holds this for writing, everything else for reading.
    turn: RwLock<()>,
    expedite: Option<Arc<Expedite>>,
    watcher: AbortHandle,
    runtime: Handle,
}

impl Shared {
    fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Network {
    /// As given to [`Network::new`].
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Reads the configurations and watches their folder from then on. Must be called in a tokio runtime.
    /// That there is no configuration is no error; it shows in [`Network::status`].
    pub fn new(settings: Settings) -> Result<Self, NetworkError> {
        let watch = Watch::new(&settings.conf_dir).map_err(|source| NetworkError::Io {
            what: "cannot watch (if limits are reached: raise sysctl fs.inotify.max_user_instances)",
            path: settings.conf_dir.clone(),
            source,
        })?;
        let runner = Runner { folders: settings.bin_dirs.clone(), timeout: settings.plugin_timeout };
        let published = Published::read(&settings.conf_dir, settings.max_conf_files);
        report(&published);
        let expedite = Expedite::new(Path::new("/sys"), settings.expedited.clone()).filter(|_| settings.expedite);
        let shared = Arc::new_cyclic(|shared| Shared {
            settings,
            runner,
            published: channel::Sender::new(Arc::new(published)),
            turn: RwLock::new(()),
            expedite,
            watcher: tokio::spawn(follow(watch, shared.clone())).abort_handle(),
            runtime: Handle::current(),
        });
        let network = Self { shared };
        // Asks for the first STATUS, so that the answer is there when a client wants it.
        let _ = network.status();
        Ok(network)
    }

    /// Whether pods can be attached; the error says why not. Answers at once: CNI's own STATUS is asked in
    /// the background, and what counts is its last answer.
    pub fn status(&self) -> Result<(), NetworkError> {
        let published = self.shared.published();
        let (answer, ask) = published.status();
        if ask {
            let shared = self.shared.clone();
            self.shared.runtime.spawn(async move {
                published.ask(&shared.runner).await;
                shared.published.send_modify(|_| ());
            });
        }
        answer
    }

    /// Configuration files that are in use, and messages about those that were refused.
    pub fn files(&self) -> (Vec<PathBuf>, Vec<String>) {
        let published = self.shared.published();
        (published.entries.iter().map(|entry| entry.file.clone()).collect(), published.refused.clone())
    }

    /// Makes a network namespace with `lo` up, pinned at `path`, which must not exist while its folder must.
    /// Those of `sysctls` that are in the namespace's reach are set. On an error nothing is left.
    pub async fn create_netns(&self, path: &Path, sysctls: &BTreeMap<String, String>) -> Result<(), NetworkError> {
        self.set_up_netns(path, sysctls, true).await
    }

    /// The same for a namespace that somebody else made and pinned there, but for the undo.
    pub async fn prepare_netns(&self, path: &Path, sysctls: &BTreeMap<String, String>) -> Result<(), NetworkError> {
        self.set_up_netns(path, sysctls, false).await
    }

    async fn set_up_netns(
        &self,
        path: &Path,
        sysctls: &BTreeMap<String, String>,
        create: bool,
    ) -> Result<(), NetworkError> {
        let (path, sysctls) = (path.to_owned(), sysctls.clone());
        blocking(move || {
            let setup = || sysctl::apply_early(&sysctls).map_err(Creation::Sysctl);
            let made = if create { netns::create(&path, setup) } else { netns::prepare(&path, setup) };
            made.map_err(|error| match error {
                Creation::Sysctl(error) => error,
                Creation::Io(source) => NetworkError::Io { what: "cannot make network namespace", path, source },
            })
        })
        .await
    }

    /// Removes a network namespace; one that is gone already is fine.
    pub async fn remove_netns(&self, path: &Path) -> Result<(), NetworkError> {
        let path = path.to_owned();
        blocking(move || {
            netns::remove(&path).map_err(|source| NetworkError::Io {
                what: "cannot remove network namespace",
                path,
                source,
            })
        })
        .await
    }

    /// Attaches a pod to the networks in use. If that fails it is undone; [`NetworkError::Undo`] says that
    /// the undo failed, too: then the record stays, and [`Network::detach`] is to be repeated until it
    /// succeeds.
    pub async fn attach(&self, request: &Attach) -> Result<Attachment, NetworkError> {
        let _turn = self.shared.turn.read().await;
        if Ledger::open(&request.record).await?.is_some() {
            return Err(NetworkError::Attached(request.pod.to_string()));
        }
        let record = self.plan(request).await?;
        match self.attach_once(request, record.clone()).await {
            // A pod that went in the same moment may have taken the bridge's address along after the plugin was called.
            Err(NetworkError::Plugin { verb: Verb::Add, source, .. })
                if matches!(*source, PluginFailure::Refused { .. }) && mend_after(&source, &record).await =>
            {
                tracing::info!(pod = %request.pod, error = chain(&*source), "attaching once more");
                self.attach_once(request, record).await
            }
            done => done,
        }
    }

    async fn attach_once(&self, request: &Attach, record: Record) -> Result<Attachment, NetworkError> {
        let ledger = Ledger::new(&request.record, record);
        ledger.update(|_| ()).await?;
        let added = async {
            self.add(&ledger).await?;
            let (netns, sysctls) = (request.netns.clone(), request.sysctls.clone());
            blocking(move || sysctl::apply_late(&netns, &sysctls)).await?;
            let attachment = attachment(&ledger.record())?;
            ledger.update(|record| record.added = true).await?;
            Ok(attachment)
        };
        match added.await {
            Ok(attachment) => Ok(attachment),
            Err(error) => match self.del(&ledger).await {
                Ok(()) => Err(error),
                Err(undo) => Err(NetworkError::Undo { error: Box::new(error), undo: Box::new(undo) }),
            },
        }
    }

    /// What an earlier attach gave; `None` if there is no record or the attach did not finish.
    pub async fn attachment(&self, record: &Path) -> Result<Option<Attachment>, NetworkError> {
        match Ledger::open(record).await?.map(|ledger| ledger.record()) {
            Some(record) if record.added => attachment(&record).map(Some),
            _ => Ok(None),
        }
    }

    /// Detaches a pod by its record, which is removed only when all plugins have acknowledged. No record:
    /// nothing to do. On an error it is to be repeated.
    pub async fn detach(&self, pod: &PodId, record: &Path) -> Result<(), NetworkError> {
        let _turn = self.shared.turn.read().await;
        let ledger = match Ledger::open(record).await {
            Ok(Some(ledger)) => ledger,
            Ok(None) => return Ok(()),
            Err(NetworkError::Store(error @ StoreError::Damaged { .. })) => {
                tracing::warn!(%pod, error = chain(&error), "detaching by today's configuration");
                Ledger::new(record, self.guess(pod).await)
            }
            Err(error) => return Err(error),
        };
        if ledger.record().pod != *pod {
            return Err(NetworkError::NotAttached(record.to_owned()));
        }
        self.del(&ledger).await
    }

    /// Asks the plugins whether an attachment is as it should be.
    pub async fn check(&self, record: &Path) -> Result<(), NetworkError> {
        let _turn = self.shared.turn.read().await;
        let missing = || NetworkError::NotAttached(record.to_owned());
        let ledger = Ledger::open(record).await?.ok_or_else(missing)?;
        let record = ledger.record();
        let runner = self.runner(&record);
        for (index, network) in record.networks.iter().enumerate() {
            let result = network.result.as_ref().filter(|_| record.added).ok_or_else(missing)?;
            let parameters = parameters(&record, network);
            let capabilities = &record.capabilities;
            let chain = Chain { config: &network.config, runner: &runner, parameters: &parameters, capabilities };
            chain.check(result, &Page { ledger: &ledger, index }).await?;
        }
        Ok(())
    }

    /// Lets the plugins drop whatever they hold for attachments that are not in `valid` (pod and interface
    /// name), which is asked once nothing else runs, and nothing else does until the end.
    pub async fn gc(&self, valid: impl FnOnce() -> Vec<(PodId, String)>) -> Result<(), NetworkError> {
        let _turn = self.shared.turn.write().await;
        let valid: Vec<_> = valid().iter().map(|(pod, interface)| (pod.to_string(), interface.clone())).collect();
        let published = self.shared.published();
        let (runner, parameters, capabilities) = (&self.shared.runner, &Parameters::default(), &Map::new());
        let mut errors = Vec::new();
        for entry in &published.entries {
            let config = &entry.config(runner).await;
            let chain = Chain { config, runner, parameters, capabilities };
            errors.extend(chain.gc(&valid, &NoJournal).await.err());
        }
        match errors.len() {
            0 => Ok(()),
            _ => Err(NetworkError::Several(errors)),
        }
    }

    /// The record of an attach that has not begun.
    async fn plan(&self, request: &Attach) -> Result<Record, NetworkError> {
        let args = request::args(&request.pod, &request.key)?;
        let capabilities = request::capabilities(request)?;
        let (published, bin_dirs) = match &request.dirs {
            None => (self.shared.published(), &self.shared.settings.bin_dirs),
            Some(Dirs { conf_dir, bin_dirs }) => {
                let (conf_dir, limit) = (conf_dir.clone(), self.shared.settings.max_conf_files);
                (Arc::new(blocking(move || Ok(Published::read(&conf_dir, limit))).await?), bin_dirs)
            }
        };
        let runner = Runner { folders: bin_dirs.clone(), timeout: self.shared.settings.plugin_timeout };
        let mut networks = Vec::new();
        for (i, entry) in published.usable()?.iter().enumerate() {
            let config = entry.config(&runner).await;
            networks.push(Attached { interface: format!("eth{i}"), config, result: None });
        }
        Ok(Record {
            pod: request.pod.clone(),
            netns: request.netns.clone(),
            args,
            capabilities,
            bin_dirs: bin_dirs.clone(),
            added: false,
            networks,
        })
    }

    async fn add(&self, ledger: &Ledger) -> Result<(), NetworkError> {
        let record = ledger.record();
        let runner = Runner { folders: record.bin_dirs.clone(), timeout: self.shared.settings.plugin_timeout };
        mend(&record).await;
        for (index, network) in record.networks.iter().enumerate() {
            let parameters = parameters(&record, network);
            let capabilities = &record.capabilities;
            let chain = Chain { config: &network.config, runner: &runner, parameters: &parameters, capabilities };
            chain.add(&Page { ledger, index }).await?;
        }
        Ok(())
    }

    async fn del(&self, ledger: &Ledger) -> Result<(), NetworkError> {
        let mut record = ledger.record();
        if !record.added {
            ledger.settle().await?;
        }
        let path = record.netns.clone();
        if !blocking(move || Ok(is_namespace(&path))).await? {
            record.netns = PathBuf::new();
        }
        let runner = self.runner(&record);
        let _short = self.shared.expedite.as_ref().map(Expedite::hold);
        for (index, network) in record.networks.iter().enumerate().rev() {
            let parameters = parameters(&record, network);
            let capabilities = &record.capabilities;
            let chain = Chain { config: &network.config, runner: &runner, parameters: &parameters, capabilities };
            chain.del(network.result.as_ref(), record.added, &Page { ledger, index }).await?;
        }
        ledger.close().await
    }

    /// What the record of an attachment may have said: all that DEL strictly needs is who.
    async fn guess(&self, pod: &PodId) -> Record {
        let settings = &self.shared.settings;
        let mut networks = Vec::new();
        for (i, entry) in self.shared.published().entries.iter().enumerate() {
            let config = entry.config(&self.shared.runner).await;
            networks.push(Attached { interface: format!("eth{i}"), config, result: None });
        }
        Record {
            pod: pod.clone(),
            netns: PathBuf::new(),
            args: format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={pod}"),
            capabilities: Map::new(),
            bin_dirs: settings.bin_dirs.clone(),
            added: false,
            networks,
        }
    }

    /// The plugins where they were at ADD, else where they are now.
    fn runner(&self, record: &Record) -> Runner {
        let mut folders = record.bin_dirs.clone();
        for folder in &self.shared.settings.bin_dirs {
            if !folders.contains(folder) {
                folders.push(folder.clone());
            }
        }
        Runner { folders, timeout: self.shared.settings.plugin_timeout }
    }
}

/// Whether a bridge of a pod's networks had to be mended.
async fn mend(record: &Record) -> bool {
    let mut mended = false;
    for network in &record.networks {
        mended |= bridge::mend(&network.config).await;
    }
    mended
}

/// Whether an ADD that was refused can go well now, by this call's hand or by that of one beside it.
async fn mend_after(failure: &PluginFailure, record: &Record) -> bool {
    if !bridge::is_unset(failure) {
        return mend(record).await;
    }
    for network in &record.networks {
        bridge::keep(&network.config).await;
    }
    true
}

enum Creation {
    Sysctl(NetworkError),
    Io(io::Error),
}

impl From<io::Error> for Creation {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Publishes every change of the folder until the network is dropped.
async fn follow(mut watch: Watch, shared: Weak<Shared>) {
    loop {
        if let Err(error) = watch.changed().await {
            tracing::error!(error = chain(&error), "cannot watch the cni configuration; this is tried again");
            let folder = watch.folder().to_owned();
            watch = loop {
                tokio::time::sleep(WATCH_PAUSE).await;
                if shared.strong_count() == 0 {
                    return;
                }
                if let Ok(again) = Watch::new(&folder) {
                    break again;
                }
            };
        }
        let Some(shared) = shared.upgrade() else { return };
        let (folder, limit) = (shared.settings.conf_dir.clone(), shared.settings.max_conf_files);
        if let Ok(published) = blocking(move || Ok(Published::read(&folder, limit))).await
            && !published.is_same(&shared.published())
        {
            report(&published);
            shared.published.send_replace(Arc::new(published));
            let _ = Network { shared }.status();
        }
    }
}

fn report(published: &Published) {
    for refused in &published.refused {
        tracing::warn!(reason = refused, "cni configuration refused");
    }
    for entry in &published.entries {
        tracing::info!(file = ?entry.file, "cni configuration in use");
    }
}

fn parameters(record: &Record, network: &Attached) -> Parameters {
    Parameters {
        container: record.pod.to_string(),
        netns: record.netns.clone(),
        interface: network.interface.clone(),
        args: record.args.clone(),
    }
}

/// Whether a namespace is mounted there; after a reboot only an empty file is.
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    #[expect(clippy::useless_conversion, reason = "the field's type differs between architectures")]
    rustix::fs::statfs(path).is_ok_and(|found| i64::try_from(found.f_type) == Ok(NSFS_MAGIC))
}

fn attachment(record: &Record) -> Result<Attachment, NetworkError> {
    let mut attachment = Attachment::default();
    for network in &record.networks {
        let Attached { interface, config, result: Some(result) } = network else { continue };
        let no_address = || NetworkError::NoAddress { network: config.name.clone(), interface: interface.clone() };
        // It was checked when it was taken.
        let content = result.content().map_err(|_| no_address())?;
        let addresses = content.addresses_of(interface);
        if attachment.interfaces.is_empty() {
            if addresses.is_empty() {
                return Err(no_address());
            }
            attachment.ips = addresses.iter().map(|address| address.ip).collect();
            if !content.nameservers.is_empty() || !content.search.is_empty() || !content.options.is_empty() {
                attachment.dns =
                    Some(Dns { servers: content.nameservers, searches: content.search, options: content.options });
            }
        }
        let inside = content.interfaces.into_iter().find(|one| one.name == *interface && !one.sandbox.is_empty());
        attachment.interfaces.push(PodInterface {
            name: interface.clone(),
            network: config.name.clone(),
            mac: inside.map(|one| one.mac).unwrap_or_default(),
            addresses,
        });
        attachment.results.push(result.to_value());
    }
    Ok(attachment)
}

#[cfg(test)]
mod tests;
