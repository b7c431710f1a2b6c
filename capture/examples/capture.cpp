// Writes a valid capture of two tensors: c++ -std=c++17 capture.cpp -o capture && ./capture FILE
// The machine is taken to be little-endian, as safetensors is.
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

// Collects tensors and writes them behind a header.
struct Capture {
    std::string entries, data;

    void add(const std::string &key, const std::vector<size_t> &shape, const std::vector<float> &values) {
        std::string axes;
        for (size_t n : shape) axes += (axes.empty() ? "" : ",") + std::to_string(n);
        const size_t start = data.size();
        data.append(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(float));
        entries += ",\"" + key + "\":{\"dtype\":\"F32\",\"shape\":[" + axes + "],\"data_offsets\":[" +
                   std::to_string(start) + "," + std::to_string(data.size()) + "]}";
    }

    bool write(const char *path, const std::string &header) const {
        std::string quoted; // JSON inside JSON
        for (char c : header) quoted += (c == '"' || c == '\\') ? std::string("\\") + c : std::string(1, c);
        const std::string text = "{\"__metadata__\":{\"twinscope.capture\":\"" + quoted + "\"}" + entries + "}";
        const uint64_t length = text.size();
        std::ofstream file(path, std::ios::binary);
        file.write(reinterpret_cast<const char *>(&length), 8);
        file << text << data;
        return bool(file.flush());
    }
};

int main(int argc, char **argv) {
    if (argc != 2) return 1;
    std::vector<float> attn_norm, layer_out; // [T, H] = [3, 4], slowest axis first
    for (int i = 0; i < 12; i++) {
        attn_norm.push_back(0.5f * i);
        layer_out.push_back(0.25f * i - 1);
    }
    Capture capture;
    capture.add("layers.0.attn_norm", {3, 4}, attn_norm);
    capture.add("layers.0.layer_out", {3, 4}, layer_out);
    return capture.write(argv[1], R"({"schema":"twinscope.capture/1","engine":"an example in C++",)"
                                  R"("tokens":[422,472,345],"contract":"f32"})") ? 0 : 1;
}
