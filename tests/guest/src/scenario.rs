//! Checks that share a boot, shown as one test each.
//!
//! A boot costs more than all the checks of a guest together. So a scenario boots once, and runs
//! its checks in their order; the first test that is asked for does it for all, and the others
//! wait for their results. With a filter, checks behind the last one that is wanted are left out.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

/// What a check says on success: what it measured.
pub type Outcome = anyhow::Result<String>;

type Boot<G> = Box<dyn FnOnce() -> anyhow::Result<(G, String)> + Send>;
type Check<G> = Box<dyn FnOnce(&mut G) -> Outcome + Send>;

/// A boot and its checks.
pub struct Scenario<G> {
    name: String,
    boot: Boot<G>,
    checks: Vec<(String, Check<G>)>,
}

impl<G: 'static> Scenario<G> {
    /// A scenario whose guest `boot` makes; with it, what it measured.
    pub fn new(
        name: &str,
        boot: impl FnOnce() -> anyhow::Result<(G, String)> + Send + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            boot: Box::new(boot),
            checks: Vec::new(),
        }
    }

    /// Adds a check, which runs after those before it.
    #[must_use]
    pub fn check(
        mut self,
        name: &str,
        check: impl FnOnce(&mut G) -> Outcome + Send + 'static,
    ) -> Self {
        self.checks.push((name.to_owned(), Box::new(check)));
        self
    }

    /// Adds the scenario's tests to `suite`.
    pub fn add_to(self, suite: &mut Suite) {
        let mut names = vec![format!("{}::boot", self.name)];
        names.extend(
            self.checks
                .iter()
                .map(|(name, _)| format!("{}::{name}", self.name)),
        );
        let shared = Arc::new(Shared::default());
        let runner: Arc<Mutex<Option<Runner>>> = Arc::new(Mutex::new(Some(Box::new({
            let names = names.clone();
            move |wanted, results| self.run(&names, wanted, results)
        }))));
        suite.scenarios.push(Prepared {
            names,
            shared,
            runner,
        });
    }

    /// Runs the boot and the first checks, `wanted` in all.
    fn run(self, names: &[String], wanted: usize, results: &Shared) {
        let measured = |name: &str, begin: Instant, outcome: Outcome| {
            let seconds = begin.elapsed().as_secs_f64();
            match outcome {
                Ok(note) if note.is_empty() => println!("  {name}: {seconds:.1} s"),
                Ok(note) => println!("  {name}: {note} ({seconds:.1} s)"),
                Err(error) => {
                    let error = format!("{error:#}");
                    println!("  {name}: FAILED after {seconds:.1} s: {error}");
                    results.put(Err(error.clone()));
                    return Err(error);
                }
            }
            results.put(Ok(()));
            Ok(())
        };
        let begin = Instant::now();
        let mut guest = match (self.boot)() {
            Ok((guest, note)) => {
                // Just said to be a success.
                let _ = measured(&names[0], begin, Ok(note));
                guest
            }
            Err(error) => {
                let why = measured(&names[0], begin, Err(error))
                    .err()
                    .unwrap_or_default();
                for _ in 1..wanted {
                    results.put(Err(format!("the guest did not come up: {why}")));
                }
                return;
            }
        };
        for ((_, check), name) in self.checks.into_iter().zip(&names[1..wanted]) {
            let begin = Instant::now();
            // The result stands in `results`.
            let _ = measured(name, begin, check(&mut guest));
        }
    }
}

type Runner = Box<dyn FnOnce(usize, &Shared) + Send>;

/// Results in the order of the checks.
#[derive(Default)]
struct Shared {
    results: Mutex<Vec<Result<(), String>>>,
    more: Condvar,
}

impl Shared {
    fn put(&self, result: Result<(), String>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push(result);
        self.more.notify_all();
    }

    fn get(&self, index: usize) -> Result<(), String> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match results.get(index) {
                Some(result) => return result.clone(),
                None => {
                    results = self
                        .more
                        .wait(results)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// How many scenarios run at once.
struct Permits {
    free: Mutex<usize>,
    more: Condvar,
}

impl Permits {
    fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.more.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        drop(free);
        let result = work();
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.more.notify_one();
        result
    }
}

struct Prepared {
    names: Vec<String>,
    shared: Arc<Shared>,
    runner: Arc<Mutex<Option<Runner>>>,
}

/// All scenarios.
#[derive(Default)]
pub struct Suite {
    scenarios: Vec<Prepared>,
}

impl Suite {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a test that shares its boot with no other.
    pub fn single(&mut self, name: &str, test: impl FnOnce() -> Outcome + Send + 'static) {
        let shared = Arc::new(Shared::default());
        let names = vec![name.to_owned()];
        let scenario = Scenario::new(name, move || Ok(((), test()?)));
        let runner: Runner = Box::new({
            let names = names.clone();
            move |wanted, results| scenario.run(&names, wanted, results)
        });
        self.scenarios.push(Prepared {
            names,
            shared,
            runner: Arc::new(Mutex::new(Some(runner))),
        });
    }

    /// Runs what the arguments ask for; `--test-threads` is the number of scenarios at once, two
    /// when not given.
    pub fn run(self, mut arguments: Arguments) -> Conclusion {
        let permits = Arc::new(Permits {
            free: Mutex::new(arguments.test_threads.unwrap_or(2).max(1)),
            more: Condvar::new(),
        });
        let mut trials = Vec::new();
        for scenario in self.scenarios {
            let wanted = scenario
                .names
                .iter()
                .rposition(|name| is_wanted(&arguments, name))
                .map_or(0, |last| last + 1);
            for (index, name) in scenario.names.iter().enumerate() {
                let shared = Arc::clone(&scenario.shared);
                let runner = Arc::clone(&scenario.runner);
                let permits = Arc::clone(&permits);
                trials.push(Trial::test(name.clone(), move || {
                    let first = runner.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(run) = first {
                        permits.with(|| run(wanted, &shared));
                    }
                    shared.get(index).map_err(Failed::from)
                }));
            }
        }
        // Every test waits in a thread of its own; the permits say who goes on.
        arguments.test_threads = Some(trials.len().max(2));
        libtest_mimic::run(&arguments, trials)
    }
}

/// Whether libtest-mimic would run the test `name`.
fn is_wanted(arguments: &Arguments, name: &str) -> bool {
    let matches = |text: &String| match arguments.exact {
        true => name == text,
        false => name.contains(text.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(log: &Arc<Mutex<Vec<&'static str>>>) -> Suite {
        let note = |what: &'static str| {
            let log = Arc::clone(log);
            move || log.lock().unwrap().push(what)
        };
        let (boot, one, two, three) = (note("boot"), note("one"), note("two"), note("three"));
        let mut suite = Suite::new();
        Scenario::new("a", move || {
            boot();
            Ok(((), String::new()))
        })
        .check("one", move |()| {
            one();
            Ok("1".into())
        })
        .check("two", move |()| {
            two();
            anyhow::bail!("no")
        })
        .check("three", move |()| {
            three();
            Ok(String::new())
        })
        .add_to(&mut suite);
        suite.single("b", || anyhow::bail!("no"));
        suite
    }

    fn run(arguments: &[&str]) -> (Conclusion, Vec<&'static str>) {
        let log = Arc::default();
        let arguments = Arguments::from_iter([&["x", "--quiet"], arguments].concat());
        let conclusion = suite(&log).run(arguments);
        let log = log.lock().unwrap().clone();
        (conclusion, log)
    }

    #[test]
    fn checks_share_one_boot_and_fail_alone() {
        let (conclusion, log) = run(&[]);
        assert_eq!(log, ["boot", "one", "two", "three"]);
        assert_eq!((conclusion.num_passed, conclusion.num_failed), (3, 2));
    }

    #[test]
    fn a_filter_leaves_out_what_comes_later() {
        let (conclusion, log) = run(&["one"]);
        assert_eq!(log, ["boot", "one"]);
        assert_eq!((conclusion.num_passed, conclusion.num_failed), (1, 0));
        let (conclusion, log) = run(&["b", "--exact"]);
        assert!(log.is_empty());
        assert_eq!((conclusion.num_passed, conclusion.num_failed), (0, 1));
    }
}
