//! Instruction-set levels: what this processor has, and what a level needs.

use crate::{Error, Result};

/// An instruction-set level of the CPU backend; those of one architecture are in order, the plainest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust on any processor: the definition.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AArch64's NEON, which all of its processors have.
    Neon,
}

/// Those of the features that this processor lacks; all of them, if it is of another architecture.
macro_rules! missing {
    ($architecture:literal, $detected:ident: $($feature:tt),*) => {{
        #[cfg(target_arch = $architecture)]
        let lacks = [$(($feature, !std::arch::$detected!($feature))),*];
        #[cfg(not(target_arch = $architecture))]
        let lacks = [$(($feature, true)),*];
        lacks.into_iter().filter_map(|(feature, lacks)| lacks.then_some(feature)).collect()
    }};
}

impl Level {
    /// Every level, plainest first.
    pub const ALL: &'static [Level] = &[Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];

    /// Those of this processor's architecture, whether or not it has them.
    pub const HERE: &'static [Level] = if cfg!(target_arch = "x86_64") {
        &[Level::Scalar, Level::Avx2, Level::Avx512]
    } else if cfg!(target_arch = "aarch64") {
        &[Level::Scalar, Level::Neon]
    } else {
        &[Level::Scalar]
    };

    /// The best level that this processor has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Level::Scalar)
    }

    /// The best level whose kernels for int8 activations this processor has; scalar, if it has none.
    pub(super) fn detect_int8() -> Self {
        let best = Self::available().into_iter().rev().find(|level| level.require_int8().is_ok());
        best.unwrap_or(Level::Scalar)
    }

    /// # Errors
    /// [`Error::CannotRun`] if the level's kernels for int8 activations need a feature besides that this processor lacks.
    pub(super) fn require_int8(self) -> Result<()> {
        if matches!(self, Level::Scalar | Level::Neon) {
            return Err(Error::usage(format!("cpu:int8 has kernels at AVX2 and AVX-512, none at {self}")));
        }
        let missing: Vec<&str> =
            if self == Level::Avx512 { missing!("x86_64", is_x86_feature_detected: "avx512vnni") } else { Vec::new() };
        match missing[..] {
            [] => Ok(()),
            [feature, ..] => Err(Error::cannot_run(format!(
                "cpu:int8 at {self} needs {feature}, which this processor ({}) lacks",
                processor()
            ))),
        }
    }

    /// The levels that this processor has, plainest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|level| level.missing().is_empty()).collect()
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
        }
    }

    /// As the command line names the backend: `cpu:scalar`, `cpu:avx2`, `cpu:avx512` or `cpu:neon`.
    pub fn backend_name(self) -> &'static str {
        match self {
            Level::Scalar => "cpu:scalar",
            Level::Avx2 => "cpu:avx2",
            Level::Avx512 => "cpu:avx512",
            Level::Neon => "cpu:neon",
        }
    }

    /// The level called `name`, without the `cpu:`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|level| level.name() == name)
    }

    /// The processor features that this level needs and this processor lacks.
    pub fn missing(self) -> Vec<&'static str> {
        match self {
            Level::Scalar => Vec::new(),
            Level::Avx2 => missing!("x86_64", is_x86_feature_detected: "avx2", "fma", "f16c"),
            Level::Avx512 => {
                missing!("x86_64", is_x86_feature_detected: "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl")
            }
            Level::Neon => missing!("aarch64", is_aarch64_feature_detected: "neon"),
        }
    }

    /// # Errors
    /// [`Error::CannotRun`] naming the features that this processor lacks, if it lacks any.
    pub(super) fn require(self) -> Result<()> {
        match self.missing() {
            missing if missing.is_empty() => Ok(()),
            missing => Err(Error::cannot_run(format!(
                "{} needs {}, which this processor ({}) lacks; it has {}",
                self.backend_name(),
                missing.join(", "),
                processor(),
                Self::available().iter().map(|l| l.backend_name()).collect::<Vec<_>>().join(", "),
            ))),
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The processor's own name for itself.
#[cfg(target_arch = "x86_64")]
pub(super) fn processor() -> String {
    use std::arch::x86_64::__cpuid;
    // The brand string: 48 bytes in leaves 0x80000002 to 0x80000004, if the highest extended leaf reaches that far.
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        return "x86_64".into();
    }
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .map(__cpuid)
        .flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// The processor's architecture, and whether it has no SIMD level here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn processor() -> String {
    let arch = std::env::consts::ARCH;
    if Level::detect() == Level::Scalar {
        format!("{arch} (no SIMD kernels for this processor: scalar only)")
    } else {
        arch.into()
    }
}

/// Bytes of a core's second-level cache, as Linux tells them; 0 where nothing does.
pub(super) fn second_level_cache() -> usize {
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        size.trim()
            .strip_suffix('K')
            .and_then(|kib| kib.parse::<usize>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    })
}
