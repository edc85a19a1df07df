//! What is this driver's own: processes, and what becomes of mounts without one.
