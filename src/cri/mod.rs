//! The gRPC door: decode, one domain call, encode. Generated types stop here.
