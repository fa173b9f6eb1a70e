//! References, registries, pulls, and the record of what is here.
