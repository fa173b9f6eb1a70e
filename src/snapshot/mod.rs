//! Layer folders by diff id, and the mount list of a container's root file system.
