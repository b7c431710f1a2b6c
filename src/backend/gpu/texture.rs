//! Textures that hold what a buffer would: words in rows of [`TEXELS`] vec4.
//!
//! Design:
//! - Only software adapters use them: they load texels many times faster than elements of a storage buffer (see
//!   `shaders/lib/weight_texture.wgsl`).
//! - Activations are copied from their tensor's buffer to a texture when a kernel first needs it, and the texture is kept with the
//!   tensor. A cache, whose buffer changes, has none: it is copied to another tensor first.

use std::cell::RefCell;
use std::rc::Rc;

use super::TEXELS;
use super::device::Device;
use crate::error::{Error, Result};

/// Bytes of a vec4.
const TEXEL: u64 = 16;
/// Bytes of a row of a texture.
pub const TEXEL_ROW: u64 = TEXEL * TEXELS as u64;

/// The most bytes that a texture holds on a device of these limits.
pub fn most_bytes(limits: &wgpu::Limits) -> u64 {
    u64::from(limits.max_texture_dimension_2d) * TEXEL_ROW
}

/// A texture of words.
#[derive(Clone)]
pub struct WordTexture {
    pub texture: wgpu::Texture,
    pub view: wgpu::TextureView,
}

impl WordTexture {
    /// A texture for `bytes`.
    ///
    /// # Errors
    /// `CannotRun` if the adapter has no textures that large, or the device no memory for it.
    pub fn new(device: &Device, what: &str, bytes: u64) -> Result<Self> {
        device.check()?;
        let rows = bytes.div_ceil(TEXEL_ROW).max(1);
        let most = u64::from(device.limits.max_texture_dimension_2d);
        if rows > most || most < u64::from(TEXELS) {
            return Err(Error::cannot_run(format!(
                "{}: {what} takes {bytes} bytes, which is more than its textures of {most} × {TEXELS} texels hold",
                device.info.name
            )));
        }
        let scope = device.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let texture = device.device.create_texture(&wgpu::TextureDescriptor {
            label: Some(what),
            size: wgpu::Extent3d { width: TEXELS, height: rows as u32, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba32Uint,
            // The source of a copy only where dispatches are recorded.
            usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        if pollster::block_on(scope.pop()).is_some() {
            let name = &device.info.name;
            return Err(Error::cannot_run(format!("{name}: out of GPU memory: {bytes} bytes for {what}")));
        }
        let view = texture.create_view(&Default::default());
        Ok(Self { texture, view })
    }

    /// Bytes that it holds.
    pub fn size(&self) -> u64 {
        u64::from(self.texture.height()) * TEXEL_ROW
    }

    /// Writes whole rows from row `first` on, after everything submitted so far.
    pub fn write_rows(&self, device: &Device, first: u32, bytes: &[u8]) {
        let rows = (bytes.len() as u64 / TEXEL_ROW) as u32;
        let layout = wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(TEXEL_ROW as u32),
            rows_per_image: Some(rows),
        };
        let size = wgpu::Extent3d { width: TEXELS, height: rows, depth_or_array_layers: 1 };
        device.queue.write_texture(self.place(first), bytes, layout, size);
    }

    /// Row `first` on, as the place of a copy.
    fn place(&self, first: u32) -> wgpu::TexelCopyTextureInfo<'_> {
        wgpu::TexelCopyTextureInfo {
            texture: &self.texture,
            mip_level: 0,
            origin: wgpu::Origin3d { x: 0, y: first, z: 0 },
            aspect: wgpu::TextureAspect::All,
        }
    }

    /// Records a copy of the first `bytes` of `buffer`, a multiple of 16, into the texture.
    pub fn copy_from(&self, device: &mut Device, buffer: &wgpu::Buffer, bytes: u64) {
        let (whole, rest) = (bytes / TEXEL_ROW, bytes % TEXEL_ROW);
        let mut copy = |first: u64, rows: u64, width: u64| {
            let layout = wgpu::TexelCopyBufferLayout {
                offset: first * TEXEL_ROW,
                bytes_per_row: Some(TEXEL_ROW as u32),
                rows_per_image: Some(rows as u32),
            };
            let size = wgpu::Extent3d { width: width as u32, height: rows as u32, depth_or_array_layers: 1 };
            let source = wgpu::TexelCopyBufferInfo { buffer, layout };
            device.encoder().copy_buffer_to_texture(source, self.place(first as u32), size);
        };
        if whole > 0 {
            copy(0, whole, TEXELS.into());
        }
        if rest > 0 {
            copy(whole, 1, rest / TEXEL);
        }
    }

    /// Records a copy of the whole texture into `buffer`, of [`Self::size`] bytes.
    pub fn copy_to(&self, device: &mut Device, buffer: &wgpu::Buffer) {
        let rows = self.texture.height();
        let layout = wgpu::TexelCopyBufferLayout {
            offset: 0,
            bytes_per_row: Some(TEXEL_ROW as u32),
            rows_per_image: Some(rows),
        };
        let size = wgpu::Extent3d { width: TEXELS, height: rows, depth_or_array_layers: 1 };
        device.encoder().copy_texture_to_buffer(self.place(0), wgpu::TexelCopyBufferInfo { buffer, layout }, size);
    }
}

/// The unused textures of activations.
#[derive(Default)]
pub struct TexturePool {
    unused: RefCell<Vec<WordTexture>>,
}

/// Unused textures that the pool holds on to.
const KEPT: usize = 64;

/// A texture that goes back to its pool.
pub struct PooledTexture {
    pub texture: WordTexture,
    pool: Rc<TexturePool>,
}

impl TexturePool {
    /// A texture for `bytes`, unused or new.
    ///
    /// # Errors
    /// As [`WordTexture::new`].
    pub fn take(self: &Rc<Self>, device: &Device, what: &str, bytes: u64) -> Result<PooledTexture> {
        let size = super::tensor::Pool::rounded(bytes).next_multiple_of(TEXEL_ROW);
        let mut unused = self.unused.borrow_mut();
        let texture = match unused.iter().rposition(|t| t.size() == size) {
            Some(at) => unused.remove(at),
            None => WordTexture::new(device, what, size)?,
        };
        Ok(PooledTexture { texture, pool: self.clone() })
    }
}

impl Drop for PooledTexture {
    fn drop(&mut self) {
        let mut unused = self.pool.unused.borrow_mut();
        if unused.len() == KEPT {
            unused.remove(0);
        }
        unused.push(self.texture.clone());
    }
}
