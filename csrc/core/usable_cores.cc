#include "core/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <thread>

namespace simplear {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

std::vector<int> allowed_processors() {
  // The kernel refuses a mask that is smaller than its own.
  for (int most = 1024; most <= 1 << 16; most *= 2) {
    cpu_set_t* mask = CPU_ALLOC(most);
    if (mask == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const bool known = sched_getaffinity(0, bytes, mask) == 0;
    std::vector<int> processors;
    for (int cpu = 0; known && cpu < most; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, mask)) processors.push_back(cpu);
    CPU_FREE(mask);
    if (known) return processors;
  }
  std::vector<int> processors(std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 0; i < processors.size(); ++i) processors[i] = static_cast<int>(i);
  return processors;
}

int num_physical_cores(const std::string& root, const std::vector<int>& processors) {
  std::set<std::string> cores;
  for (int cpu : processors) {
    std::ifstream file(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// Cores that the control group in `folder` may keep busy: version 2 says so in cpu.max, version 1 in two files.
double quota_of(const std::string& folder) {
  std::string limit;
  double period = 0;
  if (std::ifstream file(folder + "/cpu.max"); file >> limit >> period) {
    if (limit == "max" || period <= 0) return kUnlimited;
    return std::strtod(limit.c_str(), nullptr) / period;
  }
  double quota = -1;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// The smallest quota of a group and of all groups that it lies in. `group` is its path below `mount`.
double quota_along(const std::string& mount, std::string group) {
  double quota = quota_of(mount);
  while (!group.empty() && group != "/") {
    quota = std::min(quota, quota_of(mount + group));
    group.resize(group.rfind('/'));
  }
  return quota;
}

bool lists(const std::string& comma_separated, const std::string& word) {
  return ("," + comma_separated + ",").find("," + word + ",") != std::string::npos;
}

// Path of this process's group: of the hierarchy with the controller cpu (version 1), or of the one without a name (2).
bool find_group(const std::string& root, bool version2, std::string& path) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (version2 ? line.compare(0, second + 1, "0::") != 0 : !lists(controllers, "cpu")) continue;
    path = line.substr(second + 1);
    return true;
  }
  return false;
}

// Cores' worth of processor time that the control groups of this process grant it.
double cgroup_quota(const std::string& root) {
  double quota = kUnlimited;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // ... ... ... root mount-point options [optional fields] - type source super-options
    std::istringstream words(line);
    std::string word, mounted_root, mount, type, options;
    words >> word >> word >> word >> mounted_root >> mount;
    while (words >> word && word != "-") {
    }
    words >> type >> word >> options;
    const bool version2 = type == "cgroup2";
    if (!version2 && !(type == "cgroup" && lists(options, "cpu"))) continue;
    std::string group;
    if (!find_group(root, version2, group)) continue;
    // A container sees its own group as the mount's root, whatever the group is called outside. ".." comes up where the
    // process lies outside of what is mounted; nothing more can be known then than what the mount itself says.
    if (mounted_root != "/" && (group + "/").compare(0, mounted_root.size() + 1, mounted_root + "/") == 0)
      group.erase(0, mounted_root.size());
    else if (mounted_root != "/") group.clear();
    if (group.find("/..") != std::string::npos) group.clear();
    quota = std::min(quota, quota_along(root + mount, group));
  }
  return quota;
}

}  // namespace

int default_num_threads(const std::string& root, std::vector<int> processors) {
  if (processors.empty()) processors = allowed_processors();
  const int cores = std::max(1, num_physical_cores(root, processors));
  const double quota = std::ceil(cgroup_quota(root));
  return quota < cores ? std::max(1, static_cast<int>(quota)) : cores;
}

}  // namespace simplear
