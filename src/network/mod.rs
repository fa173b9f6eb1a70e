//! Network namespaces and CNI: a pod's config in, its addresses out.
