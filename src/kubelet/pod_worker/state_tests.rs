use proptest::prelude::*;

use super::state::*;
use crate::kubelet::manifest::RestartPolicy;

const SECOND: i64 = 1_000_000_000;

fn plan(restart: RestartPolicy) -> Plan {
    Plan {
        init: vec![InitStep { name: "init".to_owned(), sidecar: false }],
        main: vec!["a".to_owned(), "b".to_owned()],
        restart,
        deadline: None,
    }
}

fn world(containers: &[(&str, Life)]) -> World {
    World {
        sandbox: Some(Sandbox { id: "s".to_owned(), attempt: 0, ready: true }),
        started_at: SECOND,
        containers: containers.iter().map(|(name, life)| ((*name).to_owned(), seen(*life))).collect(),
        now: 100 * SECOND,
        ..World::default()
    }
}

fn seen(life: Life) -> Seen {
    Seen { id: "c".to_owned(), attempt: 0, here: true, life, ready_at: 0 }
}

const fn exited(code: i32) -> Life {
    Life::Exited { code, at: 50 * SECOND }
}

fn launch(container: &str, attempt: u32) -> Action {
    Action::Launch { container: container.to_owned(), attempt }
}

#[test]
fn a_pod_starts_in_order() {
    let plan = plan(RestartPolicy::Never);
    assert_eq!(decide(&plan, &World::default()), Action::RunSandbox { attempt: 0 });
    assert_eq!(decide(&plan, &world(&[])), launch("init", 0));
    assert_eq!(decide(&plan, &world(&[("init", Life::Running)])), Action::Wait { until: None });
    assert_eq!(decide(&plan, &world(&[("init", exited(0))])), launch("a", 0));
    assert_eq!(decide(&plan, &world(&[("init", exited(0)), ("a", Life::Running)])), launch("b", 0));
    let both = world(&[("init", exited(0)), ("a", Life::Running), ("b", Life::Created)]);
    assert_eq!(decide(&plan, &both), Action::Start { container: "b".to_owned() });
    let both = world(&[("init", exited(0)), ("a", Life::Running), ("b", Life::Running)]);
    assert_eq!(decide(&plan, &both), Action::Wait { until: None });
}

#[test]
fn the_code_is_that_of_the_first_failure() {
    let plan = plan(RestartPolicy::Never);
    let mut over = world(&[("init", exited(0)), ("a", Life::Exited { code: 3, at: 60 * SECOND }), ("b", exited(7))]);
    assert_eq!(decide(&plan, &over), Action::Stop);
    over.sandbox.as_mut().unwrap().ready = false;
    assert_eq!(decide(&plan, &over), Action::Finish(Outcome::Completed { code: 7 }));
}

#[test]
fn a_failed_init_container_ends_or_repeats() {
    let failed = world(&[("init", exited(9))]);
    assert_eq!(decide(&plan(RestartPolicy::Never), &failed), Action::Stop);
    assert_eq!(decide(&plan(RestartPolicy::OnFailure), &failed), launch("init", 1));
    let mut gone = failed;
    gone.sandbox.as_mut().unwrap().ready = false;
    assert_eq!(decide(&plan(RestartPolicy::Never), &gone), Action::Finish(Outcome::Completed { code: 9 }));
}

#[test]
fn exited_containers_wait_for_their_back_off() {
    let mut crashed = world(&[("init", exited(0)), ("a", Life::Running), ("b", exited(1))]);
    crashed.containers.get_mut("b").unwrap().ready_at = 130 * SECOND;
    for restart in [RestartPolicy::Always, RestartPolicy::OnFailure] {
        assert_eq!(decide(&plan(restart), &crashed), Action::Wait { until: Some(130 * SECOND) });
    }
    assert_eq!(decide(&plan(RestartPolicy::Never), &crashed), Action::Wait { until: None });
    crashed.now = 130 * SECOND;
    assert_eq!(decide(&plan(RestartPolicy::Always), &crashed), launch("b", 1));
}

#[test]
fn a_lost_sandbox_is_replaced_unless_forbidden() {
    let mut lost = world(&[("init", exited(0)), ("a", exited(137)), ("b", exited(0))]);
    lost.sandbox.as_mut().unwrap().ready = false;
    assert_eq!(decide(&plan(RestartPolicy::Always), &lost), Action::RunSandbox { attempt: 1 });
    assert_eq!(decide(&plan(RestartPolicy::Never), &lost), Action::Finish(Outcome::Completed { code: 137 }));
    lost.containers.remove("b");
    assert_eq!(decide(&plan(RestartPolicy::Never), &lost), Action::Finish(Outcome::SandboxLost));
    // In the new sandbox init runs again, and what had succeeded does not.
    let mut fresh = world(&[("init", exited(0)), ("a", exited(137)), ("b", exited(0))]);
    fresh.containers.values_mut().for_each(|seen| seen.here = false);
    assert_eq!(decide(&plan(RestartPolicy::OnFailure), &fresh), launch("init", 1));
    fresh.containers.insert("init".to_owned(), Seen { attempt: 1, ..seen(exited(0)) });
    assert_eq!(decide(&plan(RestartPolicy::OnFailure), &fresh), launch("a", 1));
    fresh.containers.insert("a".to_owned(), Seen { attempt: 1, ..seen(Life::Running) });
    assert_eq!(decide(&plan(RestartPolicy::OnFailure), &fresh), Action::Wait { until: None });
}

#[test]
fn sidecars_start_first_and_never_hold_up_the_end() {
    let mut plan = plan(RestartPolicy::Never);
    plan.init.insert(0, InitStep { name: "side".to_owned(), sidecar: true });
    assert_eq!(decide(&plan, &world(&[])), launch("side", 0));
    assert_eq!(decide(&plan, &world(&[("side", Life::Running)])), launch("init", 0));
    let crashed = world(&[("side", exited(1)), ("init", exited(0)), ("a", Life::Running), ("b", Life::Running)]);
    assert_eq!(decide(&plan, &crashed), launch("side", 1));
    let mut over = world(&[("side", Life::Running), ("init", exited(0)), ("a", exited(0)), ("b", exited(0))]);
    assert_eq!(decide(&plan, &over), Action::Stop);
    over.containers.insert("side".to_owned(), seen(exited(143)));
    over.sandbox.as_mut().unwrap().ready = false;
    assert_eq!(decide(&plan, &over), Action::Finish(Outcome::Completed { code: 0 }));
}

#[test]
fn deadlines_and_halts_stop_the_pod() {
    let mut plan = plan(RestartPolicy::Always);
    let mut running = world(&[("init", exited(0)), ("a", Life::Running), ("b", Life::Running)]);
    plan.deadline = Some(200 * SECOND);
    assert_eq!(decide(&plan, &running), Action::Wait { until: Some(201 * SECOND) });
    plan.deadline = Some(60 * SECOND);
    assert_eq!(decide(&plan, &running), Action::Stop);
    running.sandbox.as_mut().unwrap().ready = false;
    running.containers.values_mut().for_each(|seen| seen.life = exited(137));
    assert_eq!(decide(&plan, &running), Action::Finish(Outcome::DeadlineExceeded));
    plan.deadline = None;
    running.halted = true;
    assert_eq!(decide(&plan, &running), Action::Finish(Outcome::Halted));
    assert_eq!(decide(&plan, &World { halted: true, ..World::default() }), Action::Finish(Outcome::Halted));
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![
        Just(Life::Created),
        Just(Life::Running),
        (0i32..3, 0i64..100).prop_map(|(code, at)| Life::Exited { code, at: at * SECOND }),
    ]
}

fn policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

/// Carries an action out in an ideal world: what is started runs, and inits end well at once.
fn apply(world: &mut World, action: &Action) {
    match action {
        Action::RunSandbox { attempt } => {
            world.sandbox = Some(Sandbox { id: attempt.to_string(), attempt: *attempt, ready: true });
            world.containers.values_mut().for_each(|seen| {
                seen.here = false;
                if !matches!(seen.life, Life::Exited { .. }) {
                    seen.life = exited(137);
                }
            });
        }
        Action::Launch { container, attempt } => {
            let life = if container == "init" { exited(0) } else { Life::Running };
            world.containers.insert(container.clone(), Seen { attempt: *attempt, ..seen(life) });
        }
        Action::Start { container } => {
            let life = if container == "init" { exited(0) } else { Life::Running };
            if let Some(seen) = world.containers.get_mut(container) {
                seen.life = life;
            }
        }
        Action::Stop => {
            world.sandbox.as_mut().unwrap().ready = false;
            world.containers.values_mut().filter(|seen| !matches!(seen.life, Life::Exited { .. })).for_each(|seen| {
                seen.life = exited(143);
            });
        }
        Action::Wait { .. } | Action::Finish(_) => {}
    }
}

proptest! {
    /// From any state, a few steps lead to waiting for a running container or to the end; a halted pod always ends.
    #[test]
    fn every_state_settles(
        lives in proptest::collection::btree_map(prop_oneof![Just("init"), Just("a"), Just("b")], (life(), any::<bool>()), 0..4),
        restart in policy(),
        ready in any::<bool>(),
        halted in any::<bool>(),
    ) {
        let mut world = world(&[]);
        world.halted = halted;
        world.sandbox.as_mut().unwrap().ready = ready;
        for (name, (life, here)) in lives {
            // What is not in the newest sandbox cannot run.
            let life = if here || matches!(life, Life::Exited { .. }) { life } else { exited(137) };
            world.containers.insert(name.to_owned(), Seen { here, ..seen(life) });
        }
        let plan = plan(restart);
        for _ in 0..12 {
            let action = decide(&plan, &world);
            match action {
                Action::Finish(_) => {
                    let over = |seen: &Seen| matches!(seen.life, Life::Exited { .. });
                    prop_assert!(world.containers.values().all(over));
                    return Ok(());
                }
                Action::Wait { .. } => {
                    prop_assert!(!halted);
                    prop_assert!(world.containers.values().any(|seen| seen.life == Life::Running));
                    return Ok(());
                }
                _ => apply(&mut world, &action),
            }
        }
        prop_assert!(false, "does not settle: {world:?}");
    }
}
