#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/check.h"

namespace simplear {
namespace {

// The system gives a process the tile registers of AMX when it asks for them, once.
bool may_use_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool supports(const std::string& isa) {
  if (isa == "baseline") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == "avx2") return avx2;
#if defined(SIMPLEAR_EMULATE_AVX512)
  return avx2;
#endif
  if (isa == "avx512") return avx512;
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == "avx512_vnni") return vnni;
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (isa == "avx512_bf16") return bf16;
  if (isa == "amx")
    return bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           __builtin_cpu_supports("amx-int8") && may_use_amx();
#endif
  return false;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const std::vector<std::string>& compiled_isas() {
  static const std::vector<std::string> isas = {
      "baseline",
#if defined(__x86_64__)
      "avx2",     "avx512", "avx512_vnni", "avx512_bf16", "amx",
#endif
  };
  return isas;
}

const std::vector<std::string>& available_isas() {
  static const std::vector<std::string> isas = [] {
    std::vector<std::string> found;
    for (const std::string& isa : compiled_isas())
      if (supports(isa)) found.push_back(isa);
    return found;
  }();
  return isas;
}

std::string choose_isa() {
  const char* forced = std::getenv("SIMPLEAR_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().back();
  const auto& known = compiled_isas();
  check(std::find(known.begin(), known.end(), forced) != known.end(), ErrorKind::kUnsupported,
        "SIMPLEAR_CPU_ISA=", forced, ": expected one of ", join(known));
  const auto& here = available_isas();
  check(std::find(here.begin(), here.end(), forced) != here.end(), ErrorKind::kUnsupported, "SIMPLEAR_CPU_ISA=", forced,
        ": this processor has ", join(here));
  return forced;
}

}  // namespace simplear
