//! The interfaces by which a driver of moby 1.9 offers images of its own (only windowsfilter ever did).

use std::io::Read;

use super::Result;

/// What a [`Recorder`] is told of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDescriptor {
    /// The image's id.
    pub id: String,
    /// The id of its parent; `None` for a base image.
    pub parent: Option<String>,
    /// The image's configuration, as JSON.
    pub config: Vec<u8>,
}

/// The tag store, as far as a driver sees it.
pub trait Tagger {
    /// Gives an image the tag `repository:tag`; an existing one is moved only with `force`.
    ///
    /// # Errors
    /// The name is not valid, or it is taken and `force` is false.
    fn tag(&self, repository: &str, tag: &str, image: &str, force: bool) -> Result<()>;
}

/// The image graph, as far as a driver sees it.
pub trait Recorder {
    /// Whether the graph has the image.
    fn exists(&self, id: &str) -> bool;

    /// Adds an image with the content of its layer.
    ///
    /// # Errors
    /// It is not valid or could not be stored.
    fn register(&self, image: &ImageDescriptor, layer: &mut dyn Read) -> Result<()>;
}

/// A driver that adds images of its own to the graph and the tag store.
pub trait ImageRestorer {
    /// Adds the images and returns their ids.
    ///
    /// # Errors
    /// An image could not be registered or tagged.
    fn restore_custom_images(
        &self,
        tagger: &dyn Tagger,
        recorder: &dyn Recorder,
    ) -> Result<Vec<String>>;
}
