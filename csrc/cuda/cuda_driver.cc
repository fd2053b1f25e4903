// Everything here is a call of CUDA's runtime and a check of its answer.

#include "cuda/cuda_driver.h"

#include <dlfcn.h>

#include <new>

#include "core/check.h"

#ifdef SIMPLEAR_CUDA
#include <cuda_runtime_api.h>
#endif

namespace simplear {

#ifdef SIMPLEAR_CUDA

namespace {

// A device that is out of order stays so; what it says is that of the first failure.
void check_cuda(cudaError_t error, DeviceId id, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  fail(error == cudaErrorMemoryAllocation ? ErrorKind::kCapacity : ErrorKind::kInternal, name_of(id), ": ", what, ": ",
       cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
}

// Handles of the interface are CUDA's own.
cudaStream_t native(Driver::Stream* stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t native(Driver::Event* event) { return reinterpret_cast<cudaEvent_t>(event); }
cudaGraphExec_t native(Driver::Graph* graph) { return reinterpret_cast<cudaGraphExec_t>(graph); }
cudaLibrary_t native(Driver::Module* module) { return reinterpret_cast<cudaLibrary_t>(module); }

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

DeviceProperties properties_of(int index) {
  DeviceProperties p;
  cudaDeviceProp found;
  check_cuda(cudaGetDeviceProperties(&found, index), {DeviceKind::kCuda, index}, "reading its properties");
  p.name = found.name;
  p.major = found.major;
  p.minor = found.minor;
  p.total_memory = found.totalGlobalMem;
  p.num_multiprocessors = found.multiProcessorCount;
  p.max_shared_bytes = found.sharedMemPerBlockOptin;
  cudaDriverGetVersion(&p.driver_version);
  cudaRuntimeGetVersion(&p.runtime_version);
  return p;
}

class CudaDriver : public Driver {
 public:
  explicit CudaDriver(DeviceId id) : id_(id), properties_(properties_of(id.index)) {}

  DeviceId id() const override { return id_; }
  const DeviceProperties& properties() const override { return properties_; }

  size_t free_memory() override {
    Current current(*this);
    size_t free = 0, total = 0;
    run(cudaMemGetInfo(&free, &total), "asking for free memory");
    return free;
  }

  void* allocate(size_t bytes) override {
    Current current(*this);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(ErrorKind::kCapacity, name_of(id_), ": out of memory, ", bytes, " bytes were asked for, ", free_memory(),
           " are free");
    }
    run(error, "allocating memory");
    run(cudaMemset(memory, 0, bytes), "clearing memory");
    run(cudaStreamSynchronize(nullptr), "clearing memory");
    return memory;
  }
  void release(void* memory) override {
    Current current(*this, std::nothrow);
    cudaFree(memory);  // which waits for the device; an error here is an older one's
  }
  void* allocate_host(size_t bytes) override {
    Current current(*this);
    void* memory = nullptr;
    run(cudaHostAlloc(&memory, bytes > 0 ? bytes : 1, cudaHostAllocPortable), "allocating pinned memory of the host");
    return memory;
  }
  void release_host(void* memory) override {
    Current current(*this, std::nothrow);
    cudaFreeHost(memory);
  }

  Stream* create_stream() override {
    Current current(*this);
    cudaStream_t stream = nullptr;
    // Not the default stream, and not ordered with it: others in this process compute there.
    run(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    return reinterpret_cast<Stream*>(stream);
  }
  void destroy(Stream* stream) override {
    Current current(*this, std::nothrow);
    cudaStreamDestroy(native(stream));
  }
  void synchronize(Stream* stream) override {
    Current current(*this);
    run(cudaStreamSynchronize(native(stream)), "waiting for a stream");
  }
  uint64_t native_handle(Stream* stream) override { return reinterpret_cast<uint64_t>(stream); }
  Stream* adopt_stream(uint64_t handle) override { return reinterpret_cast<Stream*>(handle); }

  void copy(void* to, const void* from, size_t bytes, Stream* stream) override {
    Current current(*this);
    run(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)), "copying");
  }

  Event* create_event() override {
    Current current(*this);
    cudaEvent_t event = nullptr;
    // Who waits for a group of steps waits for milliseconds, and should not keep a core busy.
    run(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "creating an event");
    return reinterpret_cast<Event*>(event);
  }
  void destroy(Event* event) override {
    Current current(*this, std::nothrow);
    cudaEventDestroy(native(event));
  }
  void record(Event* event, Stream* stream) override {
    Current current(*this);
    run(cudaEventRecord(native(event), native(stream)), "recording an event");
  }
  void wait(Stream* stream, Event* event) override {
    Current current(*this);
    run(cudaStreamWaitEvent(native(stream), native(event), 0), "making a stream wait");
  }
  void synchronize(Event* event) override {
    Current current(*this);
    run(cudaEventSynchronize(native(event)), "waiting for the device");
  }

  void begin_capture(Stream* stream) override {
    Current current(*this);
    // Other threads of the process (torch's, say) may go on with calls that a capture forbids.
    run(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "beginning a capture");
  }
  Graph* end_capture(Stream* stream) override {
    Current current(*this);
    cudaGraph_t graph = nullptr;
    run(cudaStreamEndCapture(native(stream), &graph), "ending a capture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    run(error, "instantiating a graph");
    // The first launch would upload it otherwise.
    run(cudaGraphUpload(executable, native(stream)), "uploading a graph");
    return reinterpret_cast<Graph*>(executable);
  }
  void launch(Graph* graph, Stream* stream) override {
    Current current(*this);
    run(cudaGraphLaunch(native(graph), native(stream)), "launching a graph");
  }
  void destroy(Graph* graph) override {
    Current current(*this, std::nothrow);
    cudaGraphExecDestroy(native(graph));
  }

  Module* load_module(std::span<const std::byte> image) override {
    Current current(*this);
    cudaLibrary_t library = nullptr;
    run(cudaLibraryLoadData(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0), "loading a kernel");
    return reinterpret_cast<Module*>(library);
  }
  void destroy(Module* module) override {
    Current current(*this, std::nothrow);
    cudaLibraryUnload(native(module));
  }
  Function* function(Module* module, const std::string& name) override {
    Current current(*this);
    cudaKernel_t kernel = nullptr;
    run(cudaLibraryGetKernel(&kernel, native(module), name.c_str()), "finding a kernel in its module");
    return reinterpret_cast<Function*>(kernel);
  }
  void launch(Function* function, const KernelShape& shape, std::span<void* const> arguments, Stream* stream) override {
    Current current(*this);
    const void* kernel = function;
    if (shape.shared_bytes > kSharedWithoutAsking)
      run(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "reserving shared memory");
    run(cudaLaunchKernel(kernel, dim3(shape.grid[0], shape.grid[1], shape.grid[2]), dim3(shape.threads),
                         const_cast<void**>(arguments.data()), shape.shared_bytes, native(stream)),
        "launching a kernel");
  }

  void on_device(const std::function<void()>& work) override {
    Current current(*this);
    work();
  }
  void enqueue(std::function<void()>, Stream*) override {
    fail(ErrorKind::kUnsupported, name_of(id_), ": a function of the host cannot stand in for a kernel here");
  }

 private:
  static constexpr uint32_t kSharedWithoutAsking = 48 * 1024;

  // The device of this thread while it lives: the caller's own choice comes back afterwards. A thread without a context
  // has chosen none, and to choose the first device for it would take memory there.
  struct Current {
    explicit Current(const CudaDriver& driver) : had_context(has_context()) {
      cudaGetDevice(&before);
      if (before != driver.id_.index) driver.run(cudaSetDevice(driver.id_.index), "choosing the device");
      is_changed = before != driver.id_.index;
    }
    // For those who let go of something: they run in destructors, and a device that has failed keeps nothing anyway.
    Current(const CudaDriver& driver, std::nothrow_t) : had_context(has_context()) {
      cudaGetDevice(&before);
      is_changed = before != driver.id_.index && cudaSetDevice(driver.id_.index) == cudaSuccess;
    }
    ~Current() {
      if (is_changed && had_context) cudaSetDevice(before);
    }
    const bool had_context;
    int before = 0;
    bool is_changed = false;
  };

  // Only the driver's own library can say so without making one.
  static bool has_context() {
    using GetCurrent = int (*)(void**);
    static const auto get_current = [] {
      void* library = dlopen("libcuda.so.1", RTLD_LAZY);
      return library ? reinterpret_cast<GetCurrent>(dlsym(library, "cuCtxGetCurrent")) : nullptr;
    }();
    void* context = nullptr;
    return get_current == nullptr || (get_current(&context) == 0 && context != nullptr);
  }

  void run(cudaError_t error, const char* what) const { check_cuda(error, id_, what); }

  const DeviceId id_;
  const DeviceProperties properties_;
};

}  // namespace

bool is_cuda_built() { return true; }

DeviceList cuda_devices() {
  DeviceList list;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    int found = 0, needed = 0;
    cudaDriverGetVersion(&found);  // 0: there is none
    cudaRuntimeGetVersion(&needed);
    list.problem = cudaGetErrorString(error);
    if (found > 0 && found < needed)
      list.problem += ": it knows CUDA " + version_name(found) + ", this engine was built with " + version_name(needed);
    list.is_out_of_order = found > 0 && error != cudaErrorNoDevice;
    return list;
  }
  for (int i = 0; i < count; ++i) list.devices.push_back(properties_of(i));
  if (count == 0) list.problem = "no device";
  return list;
}

std::shared_ptr<Driver> make_cuda_driver(DeviceId id) { return std::make_shared<CudaDriver>(id); }

#else

bool is_cuda_built() { return false; }

DeviceList cuda_devices() { return {{}, "built without CUDA", false}; }

std::shared_ptr<Driver> make_cuda_driver(DeviceId id) {
  fail(ErrorKind::kUnsupported, name_of(id),
       ": this engine was built without CUDA: put nvcc on PATH and build it again");
}

#endif

}  // namespace simplear
