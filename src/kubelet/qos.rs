//! Quality of service: class, cgroup parent and the numbers that go with them, by kubelet's formulas. Pure.

use super::manifest::{Container, Pod, Quantity};

/// How cgroup parents are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// A path: `/kubepods/burstable/podUID`.
    Cgroupfs,
    /// A slice: `kubepods-burstable-podUID.slice`.
    Systemd,
}

/// QoS class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// All containers have equal requests and limits for CPU and memory.
    Guaranteed,
    /// Some have requests or limits.
    Burstable,
    /// None has.
    BestEffort,
}

/// CPU and memory of a container or pod. 0: not set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU asked for.
    pub cpu_request: i64,
    /// Thousandths of a CPU allowed.
    pub cpu_limit: i64,
    /// Bytes asked for.
    pub memory_request: i64,
    /// Bytes allowed.
    pub memory_limit: i64,
}

impl Amounts {
    /// Those of a container; a limit without a request is a request, too.
    pub fn of(container: &Container) -> Self {
        let resources = &container.resources;
        let limit = |name: &str| resources.limits.get(name).copied().unwrap_or_default();
        let request = |name: &str| resources.requests.get(name).copied().unwrap_or_else(|| limit(name));
        Self {
            cpu_request: request("cpu").milli(),
            cpu_limit: limit("cpu").milli(),
            memory_request: request("memory").value(),
            memory_limit: limit("memory").value(),
        }
    }

    /// Relative CPU weight as in cgroup v1: 2 to 262144.
    pub fn cpu_shares(self) -> i64 {
        (self.cpu_request.saturating_mul(1024) / 1000).clamp(2, 262_144)
    }

    /// Microseconds of CPU per [`CPU_PERIOD`]; 0 without a limit.
    pub fn cpu_quota(self) -> i64 {
        if self.cpu_limit == 0 { 0 } else { (self.cpu_limit.saturating_mul(CPU_PERIOD) / 1000).max(1000) }
    }
}

/// The CFS period, in microseconds.
pub const CPU_PERIOD: i64 = 100_000;

/// The class of a pod.
pub fn class(pod: &Pod) -> QosClass {
    let all: Vec<Amounts> = pod.all_containers().map(Amounts::of).collect();
    if all.iter().all(|amounts| *amounts == Amounts::default()) {
        return QosClass::BestEffort;
    }
    let pinned = |a: &Amounts| {
        a.cpu_limit > 0 && a.memory_limit > 0 && a.cpu_request == a.cpu_limit && a.memory_request == a.memory_limit
    };
    if all.iter().all(pinned) { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// The sum over the pod: containers and sidecars together, or the largest plain init container if that is more.
/// A limit counts only if every container has one.
pub fn pod_amounts(pod: &Pod) -> Amounts {
    let mut sum = Amounts::default();
    let (mut cpu_bound, mut memory_bound) = (true, true);
    let mut take = |container: &Container, join: fn(i64, i64) -> i64| {
        let own = Amounts::of(container);
        cpu_bound &= own.cpu_limit > 0;
        memory_bound &= own.memory_limit > 0;
        sum.cpu_request = join(sum.cpu_request, own.cpu_request);
        sum.cpu_limit = join(sum.cpu_limit, own.cpu_limit);
        sum.memory_request = join(sum.memory_request, own.memory_request);
        sum.memory_limit = join(sum.memory_limit, own.memory_limit);
    };
    for container in pod.spec.containers.iter().chain(pod.spec.init_containers.iter().filter(|c| c.is_sidecar())) {
        take(container, i64::saturating_add);
    }
    for container in pod.spec.init_containers.iter().filter(|container| !container.is_sidecar()) {
        take(container, i64::max);
    }
    if !cpu_bound {
        sum.cpu_limit = 0;
    }
    if !memory_bound {
        sum.memory_limit = 0;
    }
    sum
}

/// What `spec.overhead` adds.
pub fn overhead(pod: &Pod) -> Option<Amounts> {
    let overhead = &pod.spec.overhead;
    let amount = |name: &str| overhead.get(name).copied().unwrap_or_default();
    let (cpu, memory): (Quantity, Quantity) = (amount("cpu"), amount("memory"));
    (!overhead.is_empty()).then(|| Amounts {
        cpu_request: cpu.milli(),
        cpu_limit: cpu.milli(),
        memory_request: memory.value(),
        memory_limit: memory.value(),
    })
}

/// Where the pod's cgroups go.
pub fn cgroup_parent(class: QosClass, uid: &str, driver: CgroupDriver) -> String {
    let folder = match class {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "burstable",
        QosClass::BestEffort => "besteffort",
    };
    match (driver, folder) {
        (CgroupDriver::Cgroupfs, "") => format!("/kubepods/pod{uid}"),
        (CgroupDriver::Cgroupfs, folder) => format!("/kubepods/{folder}/pod{uid}"),
        // In a slice's name '-' separates levels.
        (CgroupDriver::Systemd, "") => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
        (CgroupDriver::Systemd, folder) => format!("kubepods-{folder}-pod{}.slice", uid.replace('-', "_")),
    }
}

/// How readily the kernel kills a container's processes when memory runs out, -1000 (never) to 1000.
/// Of burstable containers, those that asked for a larger part of the machine's memory go later.
pub fn oom_score_adj(class: QosClass, memory_request: i64, machine_memory: i64) -> i64 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let part = i128::from(memory_request) * 1000 / i128::from(machine_memory.max(1));
            1000 - i64::try_from(part).unwrap_or(1000).clamp(1, 997)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::parse;
    use super::*;

    fn pod(resources: &[&str]) -> Pod {
        let containers: String = resources
            .iter()
            .enumerate()
            .map(|(index, text)| format!("  - {{name: c{index}, image: i, resources: {text}}}\n"))
            .collect();
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n{containers}");
        parse(&text, "f").unwrap().pods.remove(0).pod
    }

    #[test]
    fn classes() {
        let full = "{limits: {cpu: 1, memory: 1Gi}}";
        for (resources, want) in [
            (vec!["{}"], QosClass::BestEffort),
            (vec![full, full], QosClass::Guaranteed),
            (vec![full, "{}"], QosClass::Burstable),
            (vec!["{limits: {cpu: 1}}"], QosClass::Burstable),
            (vec!["{requests: {memory: 1}}"], QosClass::Burstable),
            (vec!["{limits: {cpu: 2, memory: 1Gi}, requests: {cpu: 1}}"], QosClass::Burstable),
            (vec!["{limits: {ephemeral-storage: 1Gi}}"], QosClass::BestEffort),
        ] {
            assert_eq!(class(&pod(&resources)), want, "{resources:?}");
        }
    }

    #[test]
    fn parents_of_both_drivers() {
        let parent = |class, driver| cgroup_parent(class, "a-b", driver);
        assert_eq!(parent(QosClass::Guaranteed, CgroupDriver::Cgroupfs), "/kubepods/poda-b");
        assert_eq!(parent(QosClass::BestEffort, CgroupDriver::Cgroupfs), "/kubepods/besteffort/poda-b");
        assert_eq!(parent(QosClass::Guaranteed, CgroupDriver::Systemd), "kubepods-poda_b.slice");
        assert_eq!(parent(QosClass::Burstable, CgroupDriver::Systemd), "kubepods-burstable-poda_b.slice");
    }

    #[test]
    fn numbers_follow_the_formulas() {
        let amounts = Amounts { cpu_request: 250, cpu_limit: 500, ..Amounts::default() };
        assert_eq!((amounts.cpu_shares(), amounts.cpu_quota()), (256, 50_000));
        assert_eq!((Amounts::default().cpu_shares(), Amounts::default().cpu_quota()), (2, 0));
        assert_eq!(Amounts { cpu_limit: 1, ..Amounts::default() }.cpu_quota(), 1000);
        assert_eq!(oom_score_adj(QosClass::Burstable, 4 << 30, 8 << 30), 500);
        assert_eq!(oom_score_adj(QosClass::Burstable, 0, 8 << 30), 999);
        assert_eq!(oom_score_adj(QosClass::Burstable, 8 << 30, 8 << 30), 3);
        let sum = pod_amounts(&pod(&["{limits: {cpu: 1, memory: 1Mi}}", "{limits: {cpu: 1}}"]));
        assert_eq!((sum.cpu_limit, sum.memory_limit, sum.memory_request), (2000, 0, 1 << 20));
    }

    proptest! {
        #[test]
        fn scores_stay_between_the_other_classes(request in 0i64.., memory in 0i64..) {
            let score = oom_score_adj(QosClass::Burstable, request, memory);
            prop_assert!((3..=999).contains(&score));
        }
    }
}
