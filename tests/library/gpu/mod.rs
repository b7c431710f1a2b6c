//! The GPU backend on a real Vulkan, Metal or DX12 adapter. A software adapter is one; none at all fails the tests.

pub(crate) mod common;
mod dequant;
mod fused;
mod golden;
mod latent;
mod linear_attention;
mod ops;
mod poison;
mod production;
mod streaming;
