//! Applying through the public face.
