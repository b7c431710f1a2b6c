/* Writes a valid capture of two tensors: cc capture.c -o capture && ./capture FILE
   The machine is taken to be little-endian, as safetensors is. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    float attn_norm[3][4], layer_out[3][4]; /* [T, H], slowest axis first */
    for (int i = 0; i < 12; i++) {
        attn_norm[i / 4][i % 4] = 0.5f * i;
        layer_out[i / 4][i % 4] = 0.25f * i - 1;
    }
    /* The capture's own header is JSON inside JSON: its quotes are escaped. */
    const char *text = "{\"__metadata__\":{\"twinscope.capture\":\"{"
                       "\\\"schema\\\":\\\"twinscope.capture/1\\\",\\\"engine\\\":\\\"an example in C\\\","
                       "\\\"tokens\\\":[422,472,345],\\\"contract\\\":\\\"f32\\\"}\"},"
                       "\"layers.0.attn_norm\":{\"dtype\":\"F32\",\"shape\":[3,4],\"data_offsets\":[0,48]},"
                       "\"layers.0.layer_out\":{\"dtype\":\"F32\",\"shape\":[3,4],\"data_offsets\":[48,96]}}";
    FILE *file = argc == 2 ? fopen(argv[1], "wb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: capture FILE\n");
        return 1;
    }
    uint64_t length = strlen(text);
    int ok = fwrite(&length, 8, 1, file) == 1 && fwrite(text, length, 1, file) == 1;
    ok = ok && fwrite(attn_norm, sizeof attn_norm, 1, file) == 1 && fwrite(layer_out, sizeof layer_out, 1, file) == 1;
    return fclose(file) == 0 && ok ? 0 : 1;
}
