#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| twinscope_fuzz::readers::aprt(data));
