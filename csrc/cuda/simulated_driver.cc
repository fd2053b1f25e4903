#include "cuda/simulated_driver.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "core/check.h"

namespace simplear {

struct Driver::Graph {
  std::vector<std::function<void()>> nodes;
};

struct Driver::Stream {
  std::deque<std::function<void()>> queue;
  uint64_t num_enqueued = 0, num_executed = 0;
  Driver::Graph* capturing = nullptr;
  std::thread::id capturing_thread;
};

struct Driver::Event {
  Driver::Stream* stream = nullptr;
  uint64_t ticket = 0;  // done when so much of the stream is executed
};

struct Driver::Module {
  std::string image;
};

namespace {

constexpr size_t kAlignment = 256;
constexpr auto kInvalid = ErrorKind::kInternal;

DeviceProperties next_properties = default_simulated_device();

class SimulatedDriver : public Driver {
 public:
  explicit SimulatedDriver(DeviceId id) : id_(id), properties_(next_properties) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, properties_.total_memory, PROT_NONE, flags, -1, 0);
    check(memory != MAP_FAILED, ErrorKind::kCapacity, "simulated device: the system refused ", properties_.total_memory,
          " bytes of address space");
    memory_ = static_cast<char*>(memory);
  }
  ~SimulatedDriver() override { munmap(memory_, properties_.total_memory); }

  DeviceId id() const override { return id_; }
  const DeviceProperties& properties() const override { return properties_; }

  size_t free_memory() override {
    std::lock_guard lock(mutex_);
    size_t used = 0;
    for (const auto& [begin, bytes] : allocations_) used += padded(bytes);
    return properties_.total_memory - used;
  }

  void* allocate(size_t bytes) override {
    std::lock_guard lock(mutex_);
    refuse_while_capturing("allocate");
    size_t begin = 0;
    for (const auto& [other, size] : allocations_) {
      if (begin + padded(bytes) <= other) break;
      begin = other + padded(size);
    }
    check(begin + padded(bytes) <= properties_.total_memory, ErrorKind::kCapacity, name(), ": out of memory, ", bytes,
          " bytes were asked for, ", free_memory(), " are free");
    allocations_[begin] = bytes;
    Awake awake(*this);
    std::memset(memory_ + begin, 0, bytes);
    return memory_ + begin;
  }

  void release(void* memory) override {
    std::lock_guard lock(mutex_);
    for (Stream* stream : streams_) execute(stream, stream->num_enqueued);  // as cudaFree does
    const auto found = allocations_.find(static_cast<char*>(memory) - memory_);
    check(found != allocations_.end(), kInvalid, name(), ": memory freed that was not allocated");
    Awake awake(*this);
    std::memset(memory, 0xFF, found->second);
    allocations_.erase(found);
  }

  void* allocate_host(size_t bytes) override {
    std::lock_guard lock(mutex_);
    void* memory = std::calloc(1, std::max<size_t>(bytes, 1));
    check(memory != nullptr, ErrorKind::kCapacity, name(), ": no pinned memory, ", bytes, " bytes were asked for");
    pinned_[static_cast<char*>(memory)] = bytes;
    return memory;
  }
  void release_host(void* memory) override {
    std::lock_guard lock(mutex_);
    for (Stream* stream : streams_) execute(stream, stream->num_enqueued);
    pinned_.erase(static_cast<char*>(memory));
    std::free(memory);
  }

  Stream* create_stream() override {
    std::lock_guard lock(mutex_);
    return *streams_.insert(new Stream).first;
  }
  void destroy(Stream* stream) override {
    std::lock_guard lock(mutex_);
    execute(stream, stream->num_enqueued);
    streams_.erase(stream);
    delete stream;
  }
  void synchronize(Stream* stream) override {
    std::lock_guard lock(mutex_);
    refuse_while_capturing("wait");
    drain(stream, stream->num_enqueued);
  }
  uint64_t native_handle(Stream* stream) override { return reinterpret_cast<uint64_t>(stream); }
  Stream* adopt_stream(uint64_t handle) override {
    std::lock_guard lock(mutex_);
    auto* stream = reinterpret_cast<Stream*>(handle);
    check(streams_.contains(stream), ErrorKind::kInvalidRequest, name(), ": there is no stream ", handle);
    return stream;
  }

  void copy(void* to, const void* from, size_t bytes, Stream* stream) override {
    std::lock_guard lock(mutex_);
    check_range(to, bytes, "copy to");
    check_range(from, bytes, "copy from");
    add(stream, [=] { std::memcpy(to, from, bytes); });
  }

  Event* create_event() override { return new Event; }
  void destroy(Event* event) override { delete event; }
  void record(Event* event, Stream* stream) override {
    std::lock_guard lock(mutex_);
    refuse_while_capturing("record an event");
    *event = {stream, stream->num_enqueued};
  }
  void wait(Stream* stream, Event* event) override {
    std::lock_guard lock(mutex_);
    refuse_while_capturing("wait for an event");
    if (event->stream == nullptr) return;
    add(stream, [this, reached = *event] { drain(reached.stream, reached.ticket); });
  }
  void synchronize(Event* event) override {
    std::lock_guard lock(mutex_);
    refuse_while_capturing("wait");
    if (event->stream != nullptr) drain(event->stream, event->ticket);
  }

  void begin_capture(Stream* stream) override {
    std::lock_guard lock(mutex_);
    check(stream->capturing == nullptr, kInvalid, name(), ": a capture is under way already");
    stream->capturing = new Graph;
    stream->capturing_thread = std::this_thread::get_id();
  }
  Graph* end_capture(Stream* stream) override {
    std::lock_guard lock(mutex_);
    check(stream->capturing != nullptr, kInvalid, name(), ": no capture is under way");
    return std::exchange(stream->capturing, nullptr);
  }
  void launch(Graph* graph, Stream* stream) override {
    std::lock_guard lock(mutex_);
    for (const auto& node : graph->nodes) add(stream, node);
  }
  void destroy(Graph* graph) override { delete graph; }

  // It knows one compiled kernel: fill(int32* begin, int32 value, int32 count), whose image is its name.
  Module* load_module(std::span<const std::byte> image) override {
    return new Module{std::string(reinterpret_cast<const char*>(image.data()), image.size())};
  }
  void destroy(Module* module) override { delete module; }
  Function* function(Module* module, const std::string& kernel) override {
    check(module->image == "fill" && kernel == "fill", ErrorKind::kUnsupported, name(),
          ": compiled kernels cannot run on a simulated device");
    return reinterpret_cast<Function*>(module);
  }
  void launch(Function*, const KernelShape&, std::span<void* const> arguments, Stream* stream) override {
    const auto begin = *static_cast<int32_t* const*>(arguments[0]);
    const auto value = *static_cast<const int32_t*>(arguments[1]), count = *static_cast<const int32_t*>(arguments[2]);
    std::lock_guard lock(mutex_);
    check_range(begin, count * sizeof(int32_t), "fill");
    add(stream, [=] { std::fill_n(begin, count, value); });
  }

  void enqueue(std::function<void()> work, Stream* stream) override {
    std::lock_guard lock(mutex_);
    add(stream, std::move(work));
  }

 private:
  // The device's memory may be touched while one of these lives.
  struct Awake {
    explicit Awake(SimulatedDriver& d) : driver(d) {
      if (driver.num_awake_++ == 0) mprotect(driver.memory_, driver.properties_.total_memory, PROT_READ | PROT_WRITE);
    }
    ~Awake() {
      if (--driver.num_awake_ == 0) mprotect(driver.memory_, driver.properties_.total_memory, PROT_NONE);
    }
    SimulatedDriver& driver;
  };

  static size_t padded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment; }
  std::string name() const { return name_of(id_); }

  // As with cudaStreamCaptureModeThreadLocal: other threads may.
  void refuse_while_capturing(const char* what) const {
    for (const Stream* stream : streams_)
      check(stream->capturing == nullptr || stream->capturing_thread != std::this_thread::get_id(), kInvalid, name(),
            ": ", what, " during a capture");
  }

  void check_range(const void* address, size_t bytes, const char* what) const {
    const auto* p = static_cast<const char*>(address);
    const auto inside = [&](const char* begin, size_t size) { return p >= begin && p + bytes <= begin + size; };
    for (const auto& [begin, size] : allocations_)
      if (inside(memory_ + begin, size)) return;
    for (const auto& [begin, size] : pinned_)
      if (inside(begin, size)) return;
    fail(kInvalid, name(), ": ", what, " ", bytes,
         " bytes that are neither in one allocation of the device nor pinned");
  }

  void add(Stream* stream, std::function<void()> work) {
    check(broken_.empty(), kInvalid, broken_);
    if (stream->capturing != nullptr) return stream->capturing->nodes.push_back(std::move(work));
    stream->queue.push_back(std::move(work));
    ++stream->num_enqueued;
  }

  // For those who wait.
  void drain(Stream* stream, uint64_t ticket) {
    execute(stream, ticket);
    check(broken_.empty(), kInvalid, broken_);
  }

  // For those who let go of something, too, in destructors.
  void execute(Stream* stream, uint64_t ticket) {
    Awake awake(*this);
    while (stream->num_executed < ticket) {
      const std::function<void()> work = std::move(stream->queue.front());
      stream->queue.pop_front();
      ++stream->num_executed;
      if (!broken_.empty()) continue;
      // As on a real one: an error shows where somebody waits, and the device is of no use any more.
      try {
        work();
      } catch (const std::exception& error) {
        broken_ = name() + ": " + error.what();
      }
    }
  }

  const DeviceId id_;
  const DeviceProperties properties_;
  std::recursive_mutex mutex_;
  char* memory_;
  int num_awake_ = 0;
  std::map<size_t, size_t> allocations_;  // offset -> bytes
  std::map<const char*, size_t> pinned_;
  std::set<Stream*> streams_;
  std::string broken_;  // by what
};

}  // namespace

DeviceProperties default_simulated_device() {
  DeviceProperties properties;
  properties.name = "simulated device (for tests)";
  properties.major = 9;
  properties.total_memory = size_t{1} << 30;
  properties.num_multiprocessors = 4;
  properties.max_shared_bytes = 227 << 10;
  properties.driver_version = properties.runtime_version = 13000;
  return properties;
}

void describe_simulated_device(const DeviceProperties& properties) { next_properties = properties; }

std::shared_ptr<Driver> make_simulated_driver(DeviceId id) { return std::make_shared<SimulatedDriver>(id); }

}  // namespace simplear
