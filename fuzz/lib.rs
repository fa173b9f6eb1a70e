//! The code under test, by itself: it needs nothing else of Podwright.

#[path = "../src/streaming/channel.rs"]
mod channel;
#[path = "../src/streaming/spdy/mod.rs"]
pub mod spdy;

/// What the channels need of the room they stand in.
mod copy {
    pub(super) const HEADROOM: usize = 1;
}

/// Reads a message with channels as each variant does: what is understood must survive being written.
pub fn channels(payload: &[u8]) {
    for (base64, closes) in [(false, false), (false, true), (true, false), (true, true)] {
        let codec = channel::Codec { base64, closes };
        if let Ok(channel::Incoming::Data(number, data)) = codec.decode(payload.to_vec().into()) {
            // The variants in base64 have ten channels; what stands for others is not written.
            if !base64 || number < 10 {
                let again = codec.encode(number, channel::chunk(&data)).into_data();
                assert_eq!(codec.decode(again), Ok(channel::Incoming::Data(number, data)));
            }
        }
    }
}
