//! Hidden stand-ins for the unwinder that std asks for, so that the library doesn't need libgcc_s.
//!
//! Nothing unwinds here: panics abort, and hooks don't panic. Loading libgcc_s would cost every program a sixth of its
//! start-up time, and keep musl programs from starting. The names are hidden: exported, they would break C++ programs.
#![allow(unsafe_code)]

macro_rules! stand_ins {
    ($($name:literal)*) => {
        #[cfg(target_arch = "x86_64")]
        stand_ins!(@define "xor eax, eax\nret" "ud2" $($name)*);
        #[cfg(target_arch = "aarch64")]
        stand_ins!(@define "mov x0, 0\nret" "udf 0" $($name)*);
    };
    (@define $nothing:literal $trap:literal $($name:literal)*) => {
        core::arch::global_asm!(
            ".text",
            // The one that is called without a panic in flight: std walks the stack with it and finds no frame.
            ".globl _Unwind_Backtrace", ".hidden _Unwind_Backtrace",
            ".type _Unwind_Backtrace, @function",
            "_Unwind_Backtrace:", $nothing,
            $(
                concat!(".globl ", $name), concat!(".hidden ", $name), concat!(".type ", $name, ", @function"),
                concat!($name, ":"),
            )*
            $trap,
        );
    };
}

stand_ins! {
    "_Unwind_DeleteException"
    "_Unwind_FindEnclosingFunction"
    "_Unwind_ForcedUnwind"
    "_Unwind_GetCFA"
    "_Unwind_GetDataRelBase"
    "_Unwind_GetGR"
    "_Unwind_GetIP"
    "_Unwind_GetIPInfo"
    "_Unwind_GetLanguageSpecificData"
    "_Unwind_GetRegionStart"
    "_Unwind_GetTextRelBase"
    "_Unwind_RaiseException"
    "_Unwind_Resume"
    "_Unwind_Resume_or_Rethrow"
    "_Unwind_SetGR"
    "_Unwind_SetIP"
}
