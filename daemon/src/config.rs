//! What the daemon is told: where it listens, and which services it starts how.
//!
//! Limits      every figure has a range; what lies outside is refused with the name of the field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::Address;
use quorate::host::WELL_KNOWN;
use quorate::naming::NAME_BYTES_MAX;
use serde::Deserialize;

use crate::error::ConfigError;

/// The settings of a daemon. As a file:
///
/// ```toml
/// listen = ["tcp://127.0.0.1:7117"]
/// state = "/run/quorate-superd"
///
/// [service.printer]
/// command = ["/usr/local/bin/printer", "--quiet"]
/// idle_ms = 60000
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Config {
    /// Where the daemon listens. Default [`WELL_KNOWN`]. Whoever reaches it may register names.
    pub listen: Vec<String>,
    /// A directory in which the daemon notes which processes run, so that its next life adopts them. Default: none;
    /// processes that outlive the daemon then go on, registered, but are neither stopped nor replaced.
    pub state: Option<PathBuf>,
    /// Processes at the same time, of all services. Default 64; a request for one more is refused.
    pub processes_max: usize,
    /// The services, by the names that clients look for.
    pub service: BTreeMap<String, Service>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: vec![WELL_KNOWN.to_owned()], state: None, processes_max: 64, service: BTreeMap::new() }
    }
}

/// How one service is started and stopped. The program registers itself by [`quorate::host::Tenant`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Service {
    /// The program and its arguments. No shell reads them.
    pub command: Vec<String>,
    /// Variables that it gets beside those of the daemon.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Its working directory. Default: the daemon's.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// A file to which its output is appended, standard error included. Default: the daemon's own outputs.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// It is stopped when it was not called for so long, at the latest twice as long, in milliseconds. Default: never.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// How long it may take from its start until it has registered, in milliseconds. Default 10,000.
    #[serde(default = "ten_seconds")]
    pub ready_ms_max: u64,
    /// How long it may take to end when it was asked to, and again when it got SIGTERM, before SIGKILL, in milliseconds.
    /// Default 10,000.
    #[serde(default = "ten_seconds")]
    pub stop_ms_max: u64,
    /// The pause before it is started again after a crash or a failed start, in milliseconds; doubles with each further
    /// one. Default 500.
    #[serde(default = "half_a_second")]
    pub pause_ms_min: u64,
    /// The longest such pause, in milliseconds. A process that has lived longer than this begins with the shortest again.
    /// Default 60,000.
    #[serde(default = "a_minute")]
    pub pause_ms_max: u64,
    /// Crashes in a row after which it is started again only when somebody asks for it. Default 5.
    #[serde(default = "five")]
    pub crashes_max: u32,
}

impl Service {
    /// A service of this program and these arguments, with the defaults.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            directory: None,
            output: None,
            idle_ms: None,
            ready_ms_max: ten_seconds(),
            stop_ms_max: ten_seconds(),
            pause_ms_min: half_a_second(),
            pause_ms_max: a_minute(),
            crashes_max: five(),
        }
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle_ms.map(Duration::from_millis)
    }

    pub(crate) const fn ready_max(&self) -> Duration {
        Duration::from_millis(self.ready_ms_max)
    }

    pub(crate) const fn stop_max(&self) -> Duration {
        Duration::from_millis(self.stop_ms_max)
    }

    /// The pause after so many crashes in a row.
    pub(crate) fn pause(&self, crashes: u32) -> Duration {
        let doubled = self.pause_ms_min.saturating_mul(1 << crashes.saturating_sub(1).min(20));
        Duration::from_millis(doubled.min(self.pause_ms_max))
    }

    pub(crate) const fn pause_max(&self) -> Duration {
        Duration::from_millis(self.pause_ms_max)
    }

    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let figures = [
            ("idle_ms", self.idle_ms.unwrap_or(1)),
            ("ready_ms_max", self.ready_ms_max),
            ("stop_ms_max", self.stop_ms_max),
            ("pause_ms_min", self.pause_ms_min),
            ("pause_ms_max", self.pause_ms_max),
        ];
        if self.command.first().is_none_or(String::is_empty) {
            return Err(("command", "names no program"));
        }
        for (field, figure) in figures {
            if figure == 0 {
                return Err((field, "is zero"));
            }
            if figure > FIGURE_MAX {
                return Err((field, "is longer than a year"));
            }
        }
        if self.pause_ms_max < self.pause_ms_min {
            return Err(("pause_ms_max", "is less than pause_ms_min"));
        }
        Ok(())
    }
}

impl Config {
    /// Reads a file of settings, and checks it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let path_of_error = || path.to_owned();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path_of_error(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path_of_error(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    /// What the addresses are, when everything is as it must be.
    pub(crate) fn check(&self) -> Result<Vec<Address>, ConfigError> {
        let wrong = |field: &str, reason: &str| ConfigError::Field {
            field: field.to_owned(),
            reason: reason.to_owned(),
        };
        if self.listen.is_empty() {
            return Err(wrong("listen", "names no address"));
        }
        if self.processes_max == 0 {
            return Err(wrong("processes_max", "is zero"));
        }
        if self.service.len() > SERVICES_MAX {
            return Err(wrong("service", "has more than 1024 entries"));
        }
        for (name, service) in &self.service {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(wrong(&format!("service.{name:?}"), "has a name that no directory takes"));
            }
            service.check().map_err(|(field, reason)| wrong(&format!("service.{name}.{field}"), reason))?;
        }
        let parse = |text: &String| {
            text.parse().map_err(|source| ConfigError::Address { text: text.clone(), source })
        };
        self.listen.iter().map(parse).collect()
    }
}

/// Services of one daemon: as many as it can follow in its own directory.
const SERVICES_MAX: usize = 1024;

/// A year, in milliseconds: longer would be a mistake.
const FIGURE_MAX: u64 = 365 * 24 * 3600 * 1000;

const fn ten_seconds() -> u64 {
    10_000
}

const fn half_a_second() -> u64 {
    500
}

const fn a_minute() -> u64 {
    60_000
}

const fn five() -> u32 {
    5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn p02_a_file_of_settings_says_what_it_means_and_bad_ones_are_told_by_field() {
        let config = read("[service.printer]\ncommand = [\"/bin/true\"]\nidle_ms = 5\n").unwrap();
        assert_eq!(
            (config.listen.as_slice(), config.processes_max),
            ([WELL_KNOWN.to_owned()].as_slice(), 64)
        );
        assert_eq!(config.service["printer"].idle(), Some(Duration::from_millis(5)));
        for (text, told) in [
            ("lissten = []", "unknown field `lissten`"),
            ("listen = []", "listen: names no address"),
            ("listen = [\"here\"]", "listen: \"here\" is no address"),
            ("processes_max = 0", "processes_max: is zero"),
            ("[service.a]\ncommand = []", "service.a.command: names no program"),
            ("[service.a]", "missing field `command`"),
            ("[service.a]\ncommand = [\"a\"]\nidle_ms = 0", "service.a.idle_ms: is zero"),
            ("[service.a]\ncommand = [\"a\"]\nstop_ms_max = -1", "invalid value"),
            ("[service.a]\ncommand = [\"a\"]\nready_ms_max = 99999999999", "longer than a year"),
            ("[service.a]\ncommand = [\"a\"]\npause_ms_max = 1", "less than pause_ms_min"),
            ("[service.\"\"]\ncommand = [\"a\"]", "no directory takes"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn p02_pauses_after_crashes_double_up_to_their_limit() {
        let service = Service::new(["a"]);
        let pauses: Vec<u64> =
            (1..=9).map(|crashes| u64::try_from(service.pause(crashes).as_millis()).unwrap()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(service.pause(u32::MAX), Duration::from_secs(60));
    }
}
